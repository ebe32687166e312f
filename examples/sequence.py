"""Sequences: a small GPT-like network with tied embeddings, and a noisy ensemble of it.

python examples/sequence.py

Each token is the next of the one three places before it; one in ten, and the first three, are
random. Outputs are (batch, time, classes): classes on the last axis.
"""

import argparse

import torch
from torch import Tensor, nn

from evo_subnets import Classes, Ensemble, Search, evolve, search_trust_region
from evo_subnets.prediction import Validation, predict_members
from evo_subnets.schedules import OneCycle
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it runs")
args = parser.parse_args()
EPOCHS, POPULATION, MEMBERS, BATCHES = (1, 4, 2, 4) if args.tiny else (30, 32, 8, 8)
WORDS, LENGTH, WIDTH = 11, 24, 64
TOKENS = Classes(axis=-1)


class SmallGPT(nn.Module):
    """(batch, time) tokens to (batch, time, words) logits of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.body = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.1)
        self.head.weight = self.tokens.weight  # tied: one weight, in two places

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        x = self.tokens(tokens) + self.positions.weight[:time]
        future = torch.ones(time, time, dtype=torch.bool, device=x.device).triu(1)
        logits: Tensor = self.head(self.norm(self.body(x, mask=future)))
        return logits


def sequences(batches: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of (tokens, the tokens that follow them)."""
    draw = torch.Generator().manual_seed(seed)
    shape = (64 * batches, LENGTH + 1)
    found = torch.randint(WORDS, shape, generator=draw)
    random = torch.rand(shape, generator=draw) < 0.1
    for time in range(3, LENGTH + 1):
        follows = (found[:, time - 3] + 1) % WORDS
        found[:, time] = torch.where(random[:, time], found[:, time], follows)
    return [(batch[:, :-1], batch[:, 1:]) for batch in torch.split(found, 64)]


train, validation, test = sequences(BATCHES, 1), sequences(4, 2), sequences(4, 3)
torch.manual_seed(args.seed)
parent = SmallGPT()
task = Task(train, validation, outputs=TOKENS)
tune(parent, task, tuning=Tuning(EPOCHS, OneCycle(maximum=3e-3), "adam"), seed=args.seed)

search = Search(POPULATION, MEMBERS, seed=args.seed)
words = [tokens for tokens, _ in validation]
region = search_trust_region(parent, words, search=search, target=0.02, outputs=TOKENS)
fitness = Validation(validation, outputs=TOKENS)
ensemble = evolve(parent, fitness, search=region.search, outputs=TOKENS).ensemble

wanted = torch.cat([targets for _, targets in test])
print(f"sigma {region.sigma:.4f}; {wanted.numel()} tokens of the test, {MEMBERS} members")
print("model        accuracy, %  NLL, nats")
for name, model in {"parent": Ensemble([parent], outputs=TOKENS), "ensemble": ensemble}.items():
    said = model.combined(predict_members(model, test))
    right, nll = 100 * TOKENS.metric(said, wanted), TOKENS.loss(said, wanted)
    print(f"{name:12}{right:12.2f}{nll:11.4f}")
