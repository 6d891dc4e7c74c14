"""Memory checks in pytest: what `memlab.pytest_plugin` hooks in, one job a file.

`limits` reads markers and ini defaults, `runner` measures bodies, `scope` runs them again, `left` finds graphs that
outlive them, `baseline` and `checks` compare with what is committed, `texts` and `session` tell. Importing any module
here but `body`, `left` and `given` does not import torch.
"""
