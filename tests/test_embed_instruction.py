"""Sentences to CLIP's numbers: from a folder on this disk, into a table that the daemon reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mvla_daemon.engines.instruction import read_table

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from embed_instruction import embed, main, write_table

needs_transformers = pytest.mark.needs("torch", "transformers")
WORDS = ["go", "to", "the", "cup", "left", "right"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand random parameters, as transformers saves one."""
    import torch  # noqa: PLC0415 - not everyone has it
    from transformers import CLIPConfig, CLIPModel  # noqa: PLC0415 - likewise

    folder = tmp_path_factory.mktemp("encoders") / "tiny-clip"
    folder.mkdir()
    letters = sorted({letter for word in WORDS for letter in word})
    units = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({unit: number for number, unit in enumerate(units)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    special |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(units) - 2, "eos_token_id": len(units) - 1, "pad_token_id": len(units) - 1}
    text = {**sizes, **ends, "vocab_size": len(units), "max_position_embeddings": 20, "projection_dim": 24}
    vision = {**sizes, "image_size": 32, "patch_size": 16, "projection_dim": 24}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    return folder


@needs_transformers
def test_a_table_has_the_sentences_their_numbers_and_the_encoders_name(encoder: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.npz"
    assert main(["--encoder", str(encoder), "--out", str(table), "go left", "go right"]) == 0
    texts, numbers = read_table(table)
    assert texts == ["go left", "go right"]
    assert numbers.shape == (2, 24)
    assert np.abs(numbers[0] - numbers[1]).max() > 1e-3
    assert str(np.load(table)["encoder"]) == "tiny-clip, projected"
    assert str(tmp_path) not in str(np.load(table)["encoder"])


@needs_transformers
def test_the_numbers_are_those_of_clip_and_not_of_the_sentences_beside_it(encoder: Path) -> None:
    import torch  # noqa: PLC0415 - not everyone has it
    from transformers import CLIPModel, CLIPTokenizer  # noqa: PLC0415 - likewise

    words = CLIPTokenizer.from_pretrained(str(encoder), local_files_only=True)(["go left"], return_tensors="pt")
    clip = CLIPModel.from_pretrained(str(encoder), local_files_only=True).eval()
    with torch.no_grad():
        pooled = clip.text_model(**words).pooler_output
        projected = clip.text_projection(pooled)
    beside = ["go left", "go to the cup"]
    for given, expected in ((True, projected), (False, pooled)):
        np.testing.assert_allclose(embed(beside, encoder, projected=given)[0], expected[0].numpy(), atol=1e-5)


@needs_transformers
def test_sentences_are_added_only_to_a_table_of_the_same_encoder(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.npz"
    common = ["--encoder", str(encoder), "--out", str(table)]
    assert main([*common, "go left"]) == 0
    first = read_table(table)[1][0]
    assert main([*common, "--add", "go right", "go left"]) == 0
    texts, numbers = read_table(table)
    assert texts == ["go left", "go right"]
    assert np.array_equal(numbers[0], first)
    assert main([*common, "--add", "--numbers", "pooled", "to the cup"]) == 78
    assert "made by tiny-clip, projected, not by tiny-clip, pooled" in capsys.readouterr().err
    assert read_table(table)[0] == texts


@needs_transformers
def test_a_folder_without_clip_and_a_sentence_that_is_too_long_are_one_sentence_each(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.npz"
    assert main(["--encoder", str(tmp_path / "nowhere"), "--out", str(table), "go left"]) == 66
    assert main(["--encoder", str(tmp_path), "--out", str(table), "go left"]) == 66
    assert main(["--encoder", str(encoder), "--out", str(table), "go to the cup " * 9]) == 64
    assert main(["--encoder", str(encoder), "--out", str(table), "  "]) == 64
    said = capsys.readouterr().err
    assert said.count("\n") == 4
    assert "there is no folder" in said
    assert "holds no CLIP text encoder" in said
    assert "longer than the encoder's 20 tokens" in said
    assert not table.exists()


def test_a_table_is_replaced_in_one_step(tmp_path: Path) -> None:
    table = tmp_path / "folder" / "table.npz"
    for sentence in ("go left", "zur Tür"):
        write_table(table, [sentence], np.ones((1, 4), np.float32), "tiny, projected")
        assert read_table(table)[0] == [sentence]
    assert [path.name for path in table.parent.iterdir()] == ["table.npz"]
