"""Encoder-decoders as backbones, against transformers' own loss and generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_t5 import save_t5, save_tokenizer

from cl_lora.adapters.injection import LoRAConfig, target_modules
from cl_lora.benchmarks.streams.few_shot_language import text_array
from cl_lora.models.backbones import ModelConfig, input_size, load_backbone
from cl_lora.models.language import FullPrecision, LanguageBackbone
from cl_lora.models.prepare import prepare_backbone
from cl_lora.support.errors import UserError
from cl_lora.tasks import CHOICE, CLASS, LETTERS, Task

TASK = Task("quiz", CHOICE, LETTERS[:4])
WORDS = ("red", "green", "blue", "round", "square", "soft", "hard")


def load(folder: Path, max_length: int = 24) -> LanguageBackbone:
    config = ModelConfig("tiny", source="seq2seq", checkpoint=str(folder), max_length=max_length)
    assert input_size(config) is None
    made = load_backbone(config)
    assert isinstance(made, LanguageBackbone)
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_t5(tmp_path_factory.mktemp("t5"), tied=request.param, seed=3)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> LanguageBackbone:
    return load(folder)


def texts(count: int, seed: int = 0) -> Any:
    """Return texts of unlike lengths."""
    generator = np.random.default_rng(seed)
    drawn = [" ".join(generator.choice(WORDS, 2 + i % 9)) for i in range(count)]
    return text_array([("", "", text) for text in drawn])


def reference(folder: Path) -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(folder).eval()


def test_loss_and_match_are_those_of_the_language_model(
    folder: Path, backbone: LanguageBackbone
) -> None:
    inputs = backbone.encode(texts(40))
    mask = (inputs != 0).long()
    right = torch.arange(40) % 4
    head = backbone.task_head(TASK)
    with torch.no_grad():
        outputs = head(backbone(inputs))
        model = reference(folder)
        labels = backbone.letters[:4][right][:, None]
        loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(TASK.loss(outputs, right), loss)
    said = model.generate(inputs, attention_mask=mask, max_new_tokens=1, do_sample=False)[:, 1]
    answers = CHOICE.predictions(TASK, outputs)
    letters = backbone.letters[:4].tolist()
    expected = [letters.index(t) if t in letters else -1 for t in said.tolist()]
    assert answers.tolist() == expected


def test_a_sample_is_the_same_in_every_batch(backbone: LanguageBackbone) -> None:
    inputs = backbone.encode(texts(12))
    with torch.no_grad():
        together = backbone(inputs)
        alone = torch.cat([backbone(row[None]) for row in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_tokens_are_those_of_the_tokeniser(folder: Path, backbone: LanguageBackbone) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = text_array([("which one is ", "red", " ?"), ("", "", "soft")])
    expected = tokenizer(["which one is red ?", "soft"], padding="max_length", max_length=24)
    found = backbone.encode(samples)
    assert found.tolist() == expected["input_ids"]
    assert found.dtype == torch.int64
    assert torch.equal(backbone.encode(samples[0]), found[0])


def test_a_long_text_loses_the_end_of_its_passage(folder: Path) -> None:
    backbone = load(folder, max_length=10)
    passage = " ".join(WORDS) + " big small"
    inputs = backbone.encode(text_array([("the passage says ", passage, " which one")]))
    kept = load(folder).encode(text_array([("the passage says ", "red green blue round", "")]))
    # Three words before, two after, the end token: four of the passage are left.
    assert inputs[0, :7].tolist() == kept[0, :7].tolist()
    end = load(folder).encode(text_array([("", "", "which one")]))
    assert inputs[0, 7:].tolist() == end[0, :3].tolist()


def test_a_question_that_is_too_long_is_refused_before_training(folder: Path) -> None:
    backbone = load(folder, max_length=6)
    samples = text_array([("", "red " * 30, " which one is red"), ("", "", "red " * 7)])
    with pytest.raises(UserError, match=r"at most model.max_length=6 tokens .* 'red red .* has 8;"):
        backbone.check_samples(samples, "quiz")
    with pytest.raises(UserError, match=r"has 8; raise model.max_length"):
        backbone.encode(samples)
    backbone.check_samples(samples[:1], "quiz")


def test_images_are_no_texts(backbone: LanguageBackbone) -> None:
    with pytest.raises(UserError, match=r"Expected texts in 'pets', .* are uint8 \(2, 4, 4, 3\)"):
        backbone.check_samples(np.zeros((2, 4, 4, 3), dtype=np.uint8), "pets")


def test_targets_are_layers_of_t5(backbone: LanguageBackbone) -> None:
    # Two blocks: an attention in the encoder's, two in the decoder's; the gated layer is two.
    counts = {"q": 6, "k": 6, "v": 6, "o": 6, "wi": 8, "wo": 4}
    for target, count in counts.items():
        found = target_modules(backbone.network, (target,), backbone.targets)
        assert len(found) == count
        assert all(name.split(".")[-1].removesuffix("_0").removesuffix("_1") == target
                   for name in found)  # fmt: skip


def test_the_head_of_the_model_is_never_autocast(backbone: LanguageBackbone) -> None:
    inputs = backbone.encode(texts(3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = backbone(inputs)
    assert features.dtype == torch.float32
    assert (features.bfloat16().float() != features).any()
    layer = torch.nn.Linear(5, 3)
    same = FullPrecision.of(layer)
    assert same.weight is layer.weight
    x = torch.randn(2, 5)
    torch.testing.assert_close(same(x), layer(x))


def test_its_record_says_what_decides_its_features(folder: Path, tmp_path: Path) -> None:
    first = load(folder)
    assert load(folder).record() == first.record()
    assert load(folder, max_length=10).record() != first.record()
    other = save_t5(tmp_path, tied="tied" in str(folder), seed=9)
    assert load(other).fingerprint() != first.fingerprint()


def test_heads_it_cannot_make(backbone: LanguageBackbone) -> None:
    assert backbone.task_head(Task("six", CHOICE, LETTERS[:6]))(torch.zeros(2, 8)).shape == (2, 8)
    with pytest.raises(UserError, match=r"at most 6 options, .* but 'seven' has 7"):
        backbone.task_head(Task("seven", CHOICE, LETTERS[:7]))
    with pytest.raises(UserError, match=r"answered in words but 'pets' is of kind 'class'"):
        backbone.task_head(Task("pets", CLASS, ("cat", "dog")))


# Folders that are none ------------------------------------------------------------------------


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_model_that_is_no_encoder_decoder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"Expected an encoder-decoder such as T5 but .* 'bert'"):
        load(tmp_path)


def test_another_encoder_decoder_has_other_layers(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = ModelConfig("bart", source="seq2seq", checkpoint=str(tmp_path))
    with pytest.raises(UserError, match="The LoRA target 'q' matches no linear layer"):
        prepare_backbone(model, LoRAConfig(targets=("q",)), torch.device("cpu"), False)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_t5(tmp_path / "m")
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="the folder of a model of transformers but"):
        load(tmp_path / "m" / "config.json")
    weights = tmp_path / "m" / "model.safetensors"
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if k != "encoder.final_layer_norm.weight"}, weights)
    with pytest.raises(UserError, match=r"are not whole: 'encoder.final_layer_norm.weight' is not"):
        load(tmp_path / "m")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read by transformers"):
        load(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read by transformers"):
        load(tmp_path / "empty")


def test_tokenisers_that_do_not_do(tmp_path: Path) -> None:
    save_t5(tmp_path)
    save_tokenizer(tmp_path, letters="A")
    with pytest.raises(UserError, match="a token for each of the letters A and B"):
        load(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    values = json.loads(file.read_text())
    del values["pad_token"]
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="this one is without padding"):
        load(tmp_path)


def test_what_the_decoder_starts_with_must_be_said(tmp_path: Path) -> None:
    save_t5(tmp_path)
    edit(tmp_path, decoder_start_token_id=None)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(UserError, match="no decoder_start_token_id"):
        load(tmp_path)


@pytest.mark.parametrize("option", [{"img_size": 32}, {"prompts": ("a {}",)}])
def test_settings_of_images_mean_nothing(folder: Path, option: dict[str, Any]) -> None:
    config = ModelConfig("tiny", source="seq2seq", checkpoint=str(folder), **option)
    with pytest.raises(UserError, match="means nothing to models of source 'seq2seq'"):
        load_backbone(config)
    with pytest.raises(UserError, match=r"model.max_length to be at least 2 but got 1"):
        ModelConfig("tiny", source="seq2seq", max_length=1)
