"""The graph is what ran: a loop is in it as many times as it went round, and is not in it before.

2017's text: "the while loop was not in the graph until the loop is run". So what is saved follows the length of each
sentence; and a state that is carried on through the loop carries the graph of every round so far, until it is detached.
"""

from itertools import cycle

import torch
from torch.nn import Linear, Sequential, Tanh

from memlab.experiment import Arm, Experiment

SIZES = {"batch": 16, "width": 32, "words": 6, "window": 4}


def setup(s):
    cell = Sequential(Linear(s.width, s.width), Tanh())
    return cell, torch.zeros(s.batch, s.width), lengths(s), s.window


def lengths(s):
    """Four sentences by their words, one of them empty; they come again and again."""
    return s.words, 0, 2 * s.words, 1


def new_state(cell, start, lengths, window):
    """A new state for every sentence: as many rounds in the graph as words."""
    for length in cycle(lengths):
        state = start
        while length > 0:
            state = cell(state)
            length -= 1
        yield


def carried_state(cell, start, lengths, window):
    """The state carried on: every round of every sentence so far."""
    state = start
    for length in cycle(lengths):
        while length > 0:
            state = cell(state)
            length -= 1
        yield


def detached_every_window(cell, start, lengths, window):
    """Truncated backpropagation: detached every few rounds, keeps those."""
    state, rounds = start, 0
    for length in cycle(lengths):
        while length > 0:
            if rounds % window == 0:
                state = state.detach()
            state = cell(state)
            rounds += 1
            length -= 1
        yield


def rounds(s, k):
    """Rounds in sentence ``k``."""
    return lengths(s)[(k - 1) % 4]


def all_rounds(s, k):
    return sum(rounds(s, step) for step in range(1, k + 1))


def states(s, count):
    return {"tanh outputs, each the next round's input": (count, 4 * s.batch * s.width)}


def since_cut(s, k):
    """The rounds since the last cut, and the state that was cut, their input; the first is the start, given before."""
    since, cuts = (all_rounds(s, k) - 1) % s.window + 1, (all_rounds(s, k) - 1) // s.window
    return states(s, since) | {"detached state": (min(cuts, 1), 4 * s.batch * s.width)}


def this_sentence(s, k):
    return states(s, rounds(s, k))


def all_sentences(s, k):
    return states(s, all_rounds(s, k))


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    steps=8,
    arms=[
        Arm(new_state, saved=this_sentence, allocated=this_sentence),
        Arm(carried_state, saved=all_sentences, allocated=all_sentences),
        Arm(detached_every_window, saved=since_cut, allocated=since_cut),
    ],
)
