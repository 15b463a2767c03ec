"""How rows are cut into forwards."""

import torch

from lmpg.training.microbatches import microbatches


def cut(prompts, responses, rows, tokens):
    inputs = {"prompt_lengths": torch.tensor(prompts), "response_lengths": torch.tensor(responses)}
    return [part.tolist() for part in microbatches(inputs, rows, tokens)]


def test_rows_of_like_length_go_together_longest_first():
    assert cut([1, 1, 1, 1], [5, 9, 6, 8], 2, 0) == [[1, 3], [2, 0]]


def test_a_forward_holds_its_tokens_at_most_padding_counted_and_one_row_at_least():
    assert cut([1, 1, 1, 1], [9, 5, 4, 1], 4, 12) == [[0], [1, 2], [3]]
    assert cut([8, 1], [1, 8], 4, 31) == [[0], [1]]  # together 2 rows of 8 + 8
    assert cut([8, 1], [1, 8], 4, 32) == [[0, 1]]
    assert cut([50], [50], 4, 7) == [[0]]


def test_steps_of_an_environment_are_cut_in_their_order():
    parts = microbatches({"observations": torch.zeros(5, 1, 3)}, 2, 7)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert microbatches({"observations": torch.zeros(0, 1, 3)}, 2) == []
