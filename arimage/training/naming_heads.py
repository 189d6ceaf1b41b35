"""A head that begins by recognising in a reference what the prompt names.

A model that learns from next tokens alone learns to draw what is named, and hardly to recognise it: which of two things
an edit means hangs on one token of a whole grid, and to get it right, codes and words must be told to mean the same by
two paths that have nothing in common yet. Two steps bring them together before training goes on:

1. :func:`align`: the codes' rows of the embedding and the words of prompts, some layers up, are drawn into one space,
   contrastively over many prompts at a time. That needs prompts alone, so it is fast.
2. :func:`initialize_naming_head`: in one layer queries of codes and keys of words become that space, so that a code
   attends to the word that names it, or else to the token before the reference; and what it finds is written where
   later layers can read it.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arimage.autoregressive.layout import TrainingSequence
from arimage.autoregressive.model import AutoregressiveModel, Layer

AT_ONCE = 128  # prompts
ROWS_RATE, SPACE_RATE, WARMUP = 8e-3, 3e-3, 20
RIDGE = 1.0
CONTRAST = 4.5  # by how much, at least, the score of what is named exceeds that of what is not
ABOVE_OTHERS = 6.0  # by how much, at least, the token before the reference exceeds tokens that match nothing
NAMED = 4.0  # the entry of values that tells a word from anything else
WRITTEN, CONTENT = 12.0, 2.0  # of that entry and of what the word means, against the outputs that were there


class Alignment(nn.Module):
    """Texts and the codes that they name, in one space, as CLIP has pictures and captions (Radford et al. 2021,
    arXiv:2103.00020); a code is as near to a text as to the nearest of its words, softly (Khattab and Zaharia
    2020, arXiv:2004.12832).

    Args:
        size: of the space.
    """

    def __init__(self, hidden_size: int, size: int = 64) -> None:
        super().__init__()
        self.codes = nn.Linear(hidden_size, size, bias=False)
        self.words = nn.Linear(hidden_size, size, bias=False)
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        generator = torch.Generator().manual_seed(0)  # not the global one: a run begins the same wherever it is started
        for projection in (self.codes, self.words):
            with torch.no_grad():
                projection.weight.copy_(torch.randn(size, hidden_size, generator=generator) / (3 * hidden_size) ** 0.5)

    def of_codes(self, rows: Tensor) -> Tensor:
        """Rows of the embedding (..., hidden) in the space, of length 1."""
        return F.normalize(self.codes(F.layer_norm(rows.float(), rows.shape[-1:])), dim=-1)

    def of_words(self, states: Tensor) -> Tensor:
        """Hidden states of words (..., hidden) likewise."""
        return F.normalize(self.words(F.layer_norm(states.float(), states.shape[-1:])), dim=-1)

    def forward(self, codes: Tensor, texts: Sequence[Tensor], belongs: Tensor) -> dict[str, Tensor]:
        """``alignment``, the contrastive loss over a batch's codes and texts, and ``alignment_accuracy``, the share of
        codes that find a text that names them.

        Args:
            codes: (C, hidden), their rows of the embedding.
            texts: of each text the hidden states of its words, (words, hidden).
            belongs: (C, texts) bool, whether a text names a code.
        """
        likeness = self.of_codes(codes) @ self.of_words(torch.cat(list(texts))).T
        sharp = likeness * self.scale.exp().clamp(max=50.0)
        # Not the nearest word alone: where it is one that all texts have, the others would never learn.
        scores = torch.stack(
            [part.logsumexp(dim=1) for part in sharp.split([len(text) for text in texts], dim=1)], dim=1
        )
        asked = belongs.any(dim=1)
        right = scores.masked_fill(~belongs, -torch.inf).logsumexp(dim=1)[asked]
        by_code = (scores.logsumexp(dim=1)[asked] - right).mean()
        others = scores.masked_fill(belongs, -torch.inf).logsumexp(dim=0).expand_as(scores)
        by_text = (torch.logaddexp(scores, others) - scores)[belongs].mean()
        found = belongs.gather(1, scores.argmax(dim=1, keepdim=True))[asked]
        return {"alignment": (by_code + by_text) / 2, "alignment_accuracy": found.float().mean()}


class NamedCodes(NamedTuple):
    """A prompt's tokens, (words,), the codes that it names, and others that stand beside them, which it does not."""

    words: Tensor
    named: Tensor
    beside: Tensor


class ToldApart(NamedTuple):
    """An edit's sequence, how many words its prompt has, where the last reference's first code stands, and which of its
    codes are of what the prompt names and of what it keeps, (cells,) bool each."""

    sequence: TrainingSequence
    words: int
    first: int
    named: Tensor
    kept: Tensor


def align(
    model: AutoregressiveModel,
    alignment: Alignment,
    prompts: Sequence[NamedCodes],
    layers: int,
    steps: int,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Draw the codes' rows and the words of prompts, ``layers`` up, together; all other weights stay as they are."""
    embedding = model.model.language_model.embed_tokens.weight
    groups = [{"params": [embedding], "lr": ROWS_RATE}, {"params": list(alignment.parameters()), "lr": SPACE_RATE}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    rates = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
    random = Random(f"align/{seed}")
    told: dict[str, Tensor] = {}
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        chosen = random.sample(prompts, min(AT_ONCE, len(prompts)))
        with torch.enable_grad():
            told = _aligned(model, alignment, chosen, layers)
            optimizer.zero_grad()
            told["alignment"].backward()
            optimizer.step()
        if step % 50 == 49 or step == steps - 1:
            figures = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in told.items())
            say(f"aligning {step + 1}/{steps}: {figures}")
    embedding.grad = None


def _aligned(
    model: AutoregressiveModel, alignment: Alignment, prompts: Sequence[NamedCodes], layers: int
) -> dict[str, Tensor]:
    embedding = model.model.language_model.embed_tokens.weight
    lengths = [len(one.words) for one in prompts]
    tokens = torch.cat([one.words for one in prompts])[None].to(embedding.device)
    positions = torch.cat([torch.arange(length) for length in lengths]).expand(3, 1, -1)
    with torch.no_grad():
        rope, hidden = model.rotation(positions), embedding[tokens]
        for layer in model.model.language_model.layers[:layers]:
            hidden = layer(hidden, rope, lengths)
    codes = torch.cat([part for one in prompts for part in (one.named, one.beside)]).unique()
    belongs = torch.stack([torch.isin(codes, one.named) for one in prompts], dim=1).to(embedding.device)
    return alignment(embedding[codes.to(embedding.device)], hidden[0].split(lengths), belongs)


@torch.no_grad()
def initialize_naming_head(
    model: AutoregressiveModel,
    number: int,
    head: int,
    alignment: Alignment,
    edits: Sequence[ToldApart],
    codebook_size: int,
) -> None:
    """Let a head attend from codes to the words that name them.

    What the other heads of its key-value head matched without regard to places they match no more.

    Args:
        number: of the layer, from 0; the alignment's words are those of the layers below it.
        head: of the queries.
        alignment: of one entry less than a head has without rotation; that one is for what is not named.
        edits: to which queries, keys and values are fitted.
        codebook_size: codes are the tokens ``0 .. codebook_size - 1``.

    Raises:
        ValueError: a layer or the head does not exist, the alignment has another size, or the edits show nothing kept.
    """
    config = model.config
    if not (0 < number < config.num_hidden_layers and 0 <= head < config.num_attention_heads):
        raise ValueError(f"there is no head {head} in a layer {number} above the first")
    layer = cast(Layer, model.model.language_model.layers[number])
    attention = layer.self_attn
    size, rotary = attention.head_dim, attention.rotary
    free = size - rotary
    if alignment.codes.out_features != free - 1:
        raise ValueError(f"the alignment must have {free - 1} entries, not {alignment.codes.out_features}")
    inputs, codes, words, roles = _inputs(model, number, alignment, edits, codebook_size)
    nothing = torch.zeros(len(inputs), free, device=inputs.device)
    asked, known, values = nothing.clone(), nothing.clone(), nothing.clone()
    asked[roles == _CODE, :-1] = codes
    known[roles == _WORD, :-1] = words
    values[roles == _WORD] = torch.cat([words, words.new_full((len(words), 1), NAMED)], dim=1)
    weights = 1.0 / torch.bincount(roles, minlength=4)[roles].float()
    query, key, value = (_fitted(inputs, wanted, weights) for wanted in (asked, known, values))
    key[-1] = _fitted(inputs, (roles == _SINK).float()[:, None], weights)[0]
    query[-1] = 0.0
    named, kept = _scores(inputs, query, key, edits)
    if not named > kept:
        raise ValueError("what edits name is no nearer to their words than what they keep; align them for longer")
    middle = (named + kept) / 2
    if not middle > 0:
        raise ValueError("words and what they name are no nearer than chance; align them for longer")
    sharpness = (size**0.5 * max(CONTRAST / (named - kept), ABOVE_OTHERS / middle)) ** 0.5
    query[-1, -1] = middle
    shared = attention.heads // attention.shared
    own, keys = (slice(at * size, (at + 1) * size) for at in (head, head // shared))
    beside = [other for other in range(head // shared * shared, (head // shared + 1) * shared) if other != head]
    usual = attention.o_proj.weight.norm(dim=0).mean()
    for projection, rows, fitted in ((attention.q_proj, own, query), (attention.k_proj, keys, key)):
        projection.weight[rows][rotary:] = sharpness * fitted[:, :-1]
        projection.bias[rows][rotary:] = sharpness * fitted[:, -1]
    attention.q_proj.weight[own][:rotary] = 0.0
    attention.q_proj.bias[own][:rotary] = 0.0
    for other in beside:
        attention.q_proj.weight[other * size + rotary : (other + 1) * size] = 0.0
        attention.q_proj.bias[other * size + rotary : (other + 1) * size] = 0.0
        attention.o_proj.weight[:, other * size : other * size + free] = 0.0
    attention.v_proj.weight[keys][:free] = value[:, :-1]
    attention.v_proj.bias[keys][:free] = value[:, -1]
    directions = torch.randn(config.hidden_size, free, generator=torch.Generator().manual_seed(number))
    attention.o_proj.weight[:, own] = 0.0
    written = torch.linalg.qr(directions).Q.to(usual.device) * usual * CONTENT
    written[:, -1] *= WRITTEN / CONTENT
    attention.o_proj.weight[:, own][:, :free] = written


_OTHER, _CODE, _WORD, _SINK = range(4)


def _inputs(
    model: AutoregressiveModel, number: int, alignment: Alignment, edits: Sequence[ToldApart], codebook_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a layer's attention is given of packed edits, (L, hidden); where codes and words among them are in the
    space; and what each token is, (L,)."""
    device = model.device
    lengths = [len(edit.sequence.tokens) for edit in edits]
    tokens = torch.cat([edit.sequence.tokens for edit in edits]).to(device)
    positions = torch.cat([edit.sequence.positions for edit in edits], dim=1)[:, None].to(device)
    states: list[Tensor] = []
    with torch.enable_grad():  # without gradients layers write over their inputs
        model(tokens[None], positions, lengths, states)
    below = states[number - 1][0].detach()
    layer = cast(Layer, model.model.language_model.layers[number])
    roles = torch.where(tokens < codebook_size, _CODE, _OTHER)
    start = 0
    for edit, length in zip(edits, lengths):
        roles[start : start + edit.words] = _WORD
        roles[start + edit.words] = _SINK
        start += length
    rows = model.model.language_model.embed_tokens.weight[tokens[roles == _CODE]]
    return layer.input_layernorm(below), alignment.of_codes(rows), alignment.of_words(below[roles == _WORD]), roles


def _fitted(inputs: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """(n, hidden + 1) weights, and a bias, by which inputs give what is wanted (L, n): ridge regression."""
    given = F.pad(inputs, (0, 1), value=1.0)
    by_weight = (given * weights[:, None] * len(given)).T
    square = by_weight @ given + RIDGE * torch.eye(given.shape[1], device=given.device)
    return torch.linalg.solve(square, by_weight @ wanted).T


def _scores(inputs: Tensor, query: Tensor, key: Tensor, edits: Sequence[ToldApart]) -> tuple[float, float]:
    """The mean score of what edits name, and of what they keep, by the nearest of their words."""
    named, kept, start = [], [], 0
    for edit in edits:
        own = F.pad(inputs[start : start + len(edit.sequence.tokens)], (0, 1), value=1.0)
        cells = own[edit.first : edit.first + len(edit.named)] @ query.T
        nearest = (cells @ (own[: edit.words] @ key.T).T).amax(dim=1)
        if edit.named.any() and edit.kept.any():
            named.append(float(nearest[edit.named.to(nearest.device)].mean()))
            kept.append(float(nearest[edit.kept.to(nearest.device)].mean()))
        start += len(edit.sequence.tokens)
    if not named:
        raise ValueError("no edit shows both what its prompt names and what it keeps")
    return sum(named) / len(named), sum(kept) / len(kept)
