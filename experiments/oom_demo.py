"""If you run forward again and again and keep a score of each, every forward stays whole in memory, until it is full.

The true story of 2017: "if you run forward multiple times, but no backward, all the intermediate states would be saved
... you will get 'out of memory'". A captioning model describes images in a loop and keeps every caption's score. One
arm keeps the score as it is, and dies at the step that arithmetic predicts; the others change one line, and live.
"""

import torch
from torch import nn
from torch.nn import functional as F

from memlab.experiment import Arm, Experiment, nothing

SIZES = {"batch": 16, "image": 64, "channels": 16, "hidden": 256, "words": 1024, "length": 12}


class Captioner(nn.Module):
    """A small CNN encoder and an LSTM decoder that takes its own best word as the next input."""

    def __init__(self, s):
        super().__init__()
        self.length = s.length
        self.encode = nn.Sequential(
            nn.Conv2d(3, s.channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(s.channels, s.hidden, 4, stride=4),
            nn.ReLU(),
        )
        self.embed = nn.Embedding(s.words, s.hidden)
        self.cell = nn.LSTMCell(s.hidden, s.hidden)
        self.vocabulary = nn.Linear(s.hidden, s.words)

    def forward(self, images):
        hidden = self.encode(images).mean((2, 3))
        state, score = torch.zeros_like(hidden), 0
        word = torch.zeros_like(hidden[:, 0], dtype=torch.long)
        for _ in range(self.length):
            hidden, state = self.cell(self.embed(word), (hidden, state))
            best, word = F.log_softmax(self.vocabulary(hidden), dim=1).max(1)
            score = score + best
        return score  # one number for each image


class Volatile(torch.Tensor):
    """2017's ``Variable(x, volatile=True)``: no op on it is recorded, and what comes out is volatile again."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch.no_grad():
            return super().__torch_function__(function, types, args, kwargs or {})


def setup(s):
    return Captioner(s), torch.randn(s.batch, 3, s.image, s.image)


def keep_scores(model, images):
    """Each score leads to its whole graph."""
    scores = []
    while True:
        scores.append(model(images))
        yield


def no_grad(model, images):
    """Nothing is recorded, so nothing is kept."""
    scores = []
    while True:
        with torch.no_grad():
            scores.append(model(images))
        yield


def inference_mode(model, images):
    """Not even version counters are kept."""
    scores = []
    while True:
        with torch.inference_mode():
            scores.append(model(images))
        yield


def detach(model, images):
    """The graph is recorded, and goes with the score it led to."""
    scores = []
    while True:
        scores.append(model(images).detach())
        yield


def item(model, images):
    """Python numbers keep no tensor at all."""
    scores = []
    while True:
        scores.append(model(images).sum().item())
        yield


def volatile(model, images):
    """2017's way, emulated: a volatile input makes all that follows volatile."""
    scores = []
    images = images.as_subclass(Volatile)
    while True:
        scores.append(model(images))
        yield


def encoder(s):
    """Each ReLU saves its output; the second convolution saves the same storage as its input."""
    one, two = s.image // 2, s.image // 2 // 4
    return {"first relu": 4 * s.batch * s.channels * one**2, "second relu": 4 * s.batch * s.hidden * two**2}


def decoder(s):
    """What the words of one batch keep; a fused kernel on CUDA saves both halves of the gates, and a copy."""
    gates, state, each = 4 * s.batch * 4 * s.hidden, 4 * s.batch * s.hidden, s.length
    cuda = s.device == "cuda"
    return {
        "embedded words": (each, state),
        "hidden states": (each + 1, state),
        "cell states": (each + 1 if cuda else each, state),
        **({} if cuda else {"tanh of cell states": (each, state)}),
        "lstm gates": (3 * each if cuda else each, gates),
        "log_softmax": (each, 4 * s.batch * s.words),
        "chosen words": (each + 1, 8 * s.batch),
    }


def captions(s, k):
    once = {what: line if isinstance(line, tuple) else (1, line) for what, line in (encoder(s) | decoder(s)).items()}
    return {what: (k * count, nbytes) for what, (count, nbytes) in once.items()}


def scores(s, k):
    return {"scores": (k, 4 * s.batch)}


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    card=lambda s: 64 << 20,
    arms=[
        Arm(keep_scores, saved=captions, allocated=lambda s, k: captions(s, k) | scores(s, k), dies=True),
        Arm(no_grad, saved=nothing, allocated=scores),
        Arm(inference_mode, saved=nothing, allocated=scores),
        Arm(detach, saved=nothing, allocated=scores),
        Arm(item, saved=nothing, allocated=nothing),
        Arm(volatile, saved=nothing, allocated=scores),
    ],
)
