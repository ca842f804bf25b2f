"""Encoder-decoder language models of transformers, T5 and its kin, as frozen backbones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters.base_model import BaseModel
from cl_lora.models.base import Backbone, ModelConfig, ModelSource, register_source
from cl_lora.models.checkpoint_file import check_all_finite, check_stored
from cl_lora.models.heads import TokenHead, freeze
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest
from cl_lora.tasks import LETTERS, Task

TARGETS: Mapping[str, str] = {
    **{part: rf".*Attention\.{part}" for part in ("q", "k", "v", "o")},
    "wi": r".*DenseReluDense\.wi(_[01])?",
    "wo": r".*DenseReluDense\.wo",
}
"""Layers of self- and cross-attention, and of the feed-forward parts, of encoder and decoder."""

_LENGTH = 512  # tokens, where the configuration does not say; what T5 was trained on
_AT_ONCE = 1000  # texts that are tokenised together while they are checked
_NO_LIMIT = (
    10**9
)  # cutting is ours: the tokeniser would cut the end, where question and options are


class FullPrecision(nn.Linear):
    """A linear layer that is never autocast.

    bfloat16 has 8 bits: two letters whose logits differ by less than a hundredth would be even.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> FullPrecision:
        """Return ``layer`` with the same parameters."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Return ``x W^T + b`` in the dtype of the weights."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


def token_features(logits: Tensor, letters: Tensor) -> Tensor:
    """Return what a vocabulary's logits say of some letters, and of everything else.

    ``f = [z[t_1], ..., z[t_L], logsumexp_{v not in t} z[v], max_{v not in t} z[v]]``

    No gradient flows through the largest logit, which decides a metric only.

    Args:
        logits: z, float tensor (batch, V).
        letters: t, int64 (L,), their tokens.

    Returns:
        (batch, L + 2), the dtype of the logits.

    Example:
        >>> token_features(torch.tensor([[1.0, 2.0, 3.0, -torch.inf]]), torch.tensor([1, 0]))
        tensor([[2., 1., 3., 3.]])
    """
    rest = logits.index_fill(1, letters, -torch.inf)
    ends = rest.logsumexp(dim=1), rest.detach().amax(dim=1)
    return torch.cat([logits[:, letters], torch.stack(ends, dim=1)], dim=1)


class LanguageBackbone(Backbone):
    """An encoder-decoder that reads a text and says a first token.

    Its features are its logits of that token, cut to what a choice among options needs, see
    :func:`token_features`: so the head of a task holds the tokens of its letters, not a copy of
    the language model's head.

    Args:
        network: the model of transformers with its language model's head.
        tokenizer: a fast tokeniser of transformers.
        max_length: tokens of an input, the end token among them.

    Attributes:
        letters: int64 (L,), the tokens of the first L letters.
        max_length: tokens of an input.

    Raises:
        UserError: if the tokeniser is slow, has no padding, or has no token for each of two
            letters.
    """

    pads = True
    letters: Tensor

    def __init__(self, network: nn.Module, tokenizer: Any, max_length: int) -> None:
        if not tokenizer.is_fast or tokenizer.pad_token_id is None:
            raise UserError(
                "Expected a fast tokeniser with a padding token (tokenizer.json) but this one is "
                f"{'without padding' if tokenizer.is_fast else 'slow'}; save a fast one beside "
                "the model"
            )
        letters = _letter_tokens(tokenizer)
        super().__init__(network, len(letters) + 2, TARGETS)
        self.max_length = max_length
        self._tokenizer, self._padding = tokenizer, int(tokenizer.pad_token_id)
        self._start = _start_token(network)
        self.register_buffer("letters", torch.tensor(letters), persistent=False)
        self._tokens_digest = digest(tokenizer.backend_tokenizer.to_str())

    def encode(self, samples: npt.NDArray[Any]) -> Tensor:
        """Return the tokens of texts, int64 (..., max_length), padded at the end.

        A text that is too long loses the end of its passage, and nothing else.

        Args:
            samples: texts in three parts, before the passage, the passage, and after it: ``str``
                (..., 3).

        Raises:
            UserError: if a text is too long even without its passage.
        """
        parts = np.asarray(samples, dtype=object).reshape(-1, 3)
        made = torch.full((len(parts), self.max_length), self._padding, dtype=torch.int64)
        for row, tokens in zip(made, self._tokens(parts), strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return made.reshape(*np.shape(samples)[:-1], self.max_length)

    def _tokens(self, parts: npt.NDArray[Any]) -> list[list[int]]:
        """Return the tokens of texts in three parts (N, 3), none longer than the limit."""
        texts = ["".join(row) for row in parts]
        found = self._tokenizer(texts, return_offsets_mapping=True)
        made = []
        for row, tokens, places in zip(
            parts, found["input_ids"], found["offset_mapping"], strict=True
        ):
            excess = len(tokens) - self.max_length
            made.append(tokens if excess <= 0 else self._cut(row, tokens, places, excess))
        return made

    def _cut(
        self,
        row: Sequence[str],
        tokens: Sequence[int],
        places: Sequence[tuple[int, int]],
        excess: int,
    ) -> list[int]:
        """Return the tokens of one text without the last ``excess`` ones of its passage."""
        begin, end = len(row[0]), len(row[0]) + len(row[1])
        passage = [i for i, (a, b) in enumerate(places) if begin <= a < b <= end]
        if excess > len(passage):
            raise self._too_long(row, len(tokens) - len(passage))
        dropped = set(passage[len(passage) - excess :])
        return [token for i, token in enumerate(tokens) if i not in dropped]

    def _too_long(self, row: Sequence[str], count: int) -> UserError:
        shown = (row[0] + row[2]).strip()[:60]
        return UserError(
            f"Expected texts of at most model.max_length={self.max_length} tokens beside their "
            f"passage but {shown!r}... has {count}; raise model.max_length, or leave it out"
        )

    def check_samples(self, samples: npt.NDArray[Any], name: str) -> None:
        """Check that no text of an experience is too long without its passage.

        Raises:
            UserError: naming the first that is, or if these are no texts in three parts.
        """
        if samples.dtype != object or samples.ndim != 2 or samples.shape[1] != 3:
            raise UserError(
                f"Expected texts in {name!r}, three parts each, but its inputs are "
                f"{samples.dtype} {samples.shape}; choose a benchmark of texts, or a model of "
                "images"
            )
        for start in range(0, len(samples), _AT_ONCE):
            rows = samples[start : start + _AT_ONCE]
            found = self._tokenizer([row[0] + row[2] for row in rows])["input_ids"]
            for row, tokens in zip(rows, found, strict=True):
                if len(tokens) > self.max_length:
                    raise self._too_long(row, len(tokens))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features (batch, L + 2) of tokens int64 (batch, max_length).

        No more of the padding is computed than the longest of the batch needs.
        """
        mask = inputs != self._padding
        longest = max(1, int(mask.sum(dim=1).max()))
        tokens, mask = inputs[:, :longest], mask[:, :longest]
        out = self.network(
            input_ids=tokens,
            attention_mask=mask.long(),
            decoder_input_ids=tokens.new_full((len(tokens), 1), self._start),
            use_cache=False,
        )
        return token_features(out.logits[:, -1], self.letters)

    def task_head(self, task: Task) -> nn.Module:
        """Return the head of a task of choices: the tokens of its letters.

        Raises:
            UserError: if the task is no choice, or has more options than there are letters with a
                token of their own.
        """
        if not task.kind.of_tokens or task.labels != LETTERS[: len(task.labels)]:
            raise UserError(
                f"Expected tasks that are answered in words but {task.name!r} is of kind "
                f"{task.kind.name!r}; choose a benchmark of texts, or a model of images"
            )
        if len(task.labels) > len(self.letters):
            raise UserError(
                f"Expected at most {len(self.letters)} options, the letters that have a token of "
                f"their own in this model, but {task.name!r} has {len(task.labels)}; leave out "
                "its questions with more, or choose another model"
            )
        return freeze(TokenHead(self.letters[: len(task.labels)].cpu()))

    def record(self) -> dict[str, Any]:
        """Return what decides its features: weights, tokeniser and length of inputs."""
        return {
            **super().record(),
            "tokenizer": self._tokens_digest,
            "max_length": self.max_length,
        }


def _letter_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens of the first letters that have one of their own, two at least."""
    found: list[int] = []
    for letter in LETTERS:
        tokens = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1 or tokens[0] in (*found, tokenizer.unk_token_id):
            break
        found += tokens
    if len(found) < 2:
        raise UserError(
            "Expected a tokeniser with a token for each of the letters A and B, which options are "
            "called by, but this one has none; choose another model"
        )
    return found


def _start_token(network: Any) -> int:
    """Return the token that the decoder starts with."""
    for config in (network.config, getattr(network, "generation_config", None)):
        token = getattr(config, "decoder_start_token_id", None)
        if token is not None:
            return int(token)
    raise UserError(
        "Expected a model that says what its decoder starts with but it has no "
        "decoder_start_token_id; add it to its config.json"
    )


def _load(config: ModelConfig) -> LanguageBackbone:
    import transformers

    where = config.checkpoint or config.name
    place = str(Path(where).expanduser()) if config.checkpoint else where
    if config.checkpoint and not Path(place).is_dir():
        raise UserError(
            f"Expected model.checkpoint to be the folder of a model of transformers but {where} is "
            "a file; give the folder that save_pretrained wrote"
        )
    about = _read(transformers.AutoConfig.from_pretrained, place, where)
    if not getattr(about, "is_encoder_decoder", False):
        raise UserError(
            f"Expected an encoder-decoder such as T5 but {where} is of type {about.model_type!r}, "
            "which is none; choose another model.checkpoint or model.name"
        )
    network, told = _read(
        transformers.AutoModelForSeq2SeqLM.from_pretrained,
        place,
        where,
        dtype=torch.float32,
        weights_only=True,  # of weights that are no safetensors
        output_loading_info=True,
    )
    missing = sorted(told["missing_keys"])
    if missing:
        raise UserError(
            f"The weights in {where} are not whole: {missing[0]!r} is not there; save the model "
            "again, with its language model's head"
        )
    check_stored(place)
    check_all_finite(network.state_dict().items(), where)
    tokenizer = _read(
        transformers.AutoTokenizer.from_pretrained, place, where, model_max_length=_NO_LIMIT
    )
    network.set_output_embeddings(FullPrecision.of(network.get_output_embeddings()))
    network.requires_grad_(False).eval()
    made = LanguageBackbone(network, tokenizer, config.max_length or _LENGTH)
    made.base_model = BaseModel(task_type="SEQ_2_SEQ_LM", name_or_path=place)
    return made.eval()


def _read(load: Any, place: str, where: str, **options: Any) -> Any:
    try:
        with _quiet(place):
            # Asked whether code of the folder may run, the library would wait for an answer.
            return load(place, trust_remote_code=False, **options)
    # What goes wrong in there ranges from a missing file to the network; the library has no common
    # base class for it, and its messages name the cause.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"The model {where} cannot be read by transformers ({type(error).__name__}: {said}); "
            "give the folder of a whole model as model.checkpoint=FOLDER, or its name on the hub "
            "as model.name"
        ) from error


@contextlib.contextmanager
def _quiet(place: str) -> Iterator[None]:
    """Show no progress bar beside the run's own, as reading a local folder takes a moment.

    Nor is a head told of that is not tied to the embedding, as that of Flan-T5 is not.
    """
    from transformers.utils import logging

    shown, told = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if Path(place).is_dir():
        logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(told)
        if shown:
            logging.enable_progress_bar()


register_source(
    ModelSource(
        name="seq2seq",
        summary="encoder-decoder language models of transformers (T5), from a folder or the hub",
        load=_load,
        input_size=lambda config: None,
        targets=TARGETS,
        takes=frozenset({"checkpoint", "max_length"}),
    )
)
