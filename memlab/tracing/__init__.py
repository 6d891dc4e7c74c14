"""A script or a module under memlab: it runs unchanged, its steps are found, what it keeps becomes plain data.

``script`` runs it, ``steps`` finds its steps, ``recorder`` reads the watch at each of them, ``trace`` is what was
recorded, ``compare`` sets two of them side by side. Nothing here prints.
"""
