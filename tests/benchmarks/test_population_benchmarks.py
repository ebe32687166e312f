"""The benchmarks of populations, tiny: each runs to its end and says what it measures."""

import re

SPREAD = r"\[[\d.]+, [\d.]+\]"


def test_all_sides_judge_a_population_alike(server):
    text = server.printed(
        "benchmarks/population", "--model", "lenet-s", "--images", 100, "--batches", 50,
        "--rounds", 1, "--threads", 1, "--populations", 4, "--others", "--keep-memory",
    )  # fmt: skip
    assert "freed memory kept. Accuracies agree." in text
    for side in ("SupervisedNE, batches of 50", "plain passes, batches of 50",
                 "a child a thread", "evaluate"):  # fmt: skip
        assert re.search(rf"^{side} +\d+\.\d {SPREAD} +\d+\.\d\d {SPREAD}", text, re.MULTILINE)
    assert re.search(r"population of +4: +-?[\d.]+ MiB", text)


def test_convolutions_are_timed_layer_by_layer(server):
    text = server.printed(
        "benchmarks/winograd", "--layers", "ResNet-20, 3rd stage", "--batch", 10, "--rounds", 1,
        "--batches", 2,
    )  # fmt: skip
    row = rf"^ResNet-20, 3rd stage .+ +\d+\.\d\d {SPREAD} +\d+\.\d\d {SPREAD} +\d\.\de-0\d$"
    assert re.search(row, text, re.MULTILINE)


def test_races_are_counted_against_full_evaluation(server):
    text = server.printed(
        "benchmarks/racing", "--model", "mlp-32", "--epochs", 1, "--targets", 0.02, "--pool", 16,
        "--images", 300, "--children", 8, "--places", 2, "--seeds", 2, "--threads", 1,
    )  # fmt: skip
    assert "8 children, 2 places, 358 images." in text  # twice the 179 of the test set
    rows = re.findall(r"^(.+?)  +\d+ +\d+\.\d\d +\d+\.\d\d +\d+ % +\d+ % +", text, re.MULTILINE)
    assert [row.split(",")[0] for row in rows] == [
        "hoeffding", "bernstein", "bernstein", "normal", "normal", "a part for all",
    ]  # fmt: skip


def test_the_crossover_is_measured(server):
    text = server.printed(
        "benchmarks/crossover", "--sizes", "1000", "50000", "--rounds", "1", "--threads", "1"
    )
    assert re.search(rf"^50,000 +[\d.]+ {SPREAD} +[\d.]+ {SPREAD} +[\d.]+ ", text, re.MULTILINE)
    assert re.search(r"^loaded from disk: \d+ ", text, re.MULTILINE)
    assert re.search(r"^compiled first: \d+ ", text, re.MULTILINE)
