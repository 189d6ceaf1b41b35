"""What a stage is: one YAML file, validated once."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from arimage.data.scenes.settings import SceneSettings
from arimage.training.precision import Precision
from arimage.training.reinforcement.config import FlowPolicy, Preferences, RewardsConfig, TokenPolicy
from arimage.yaml_files import merged

Subject = Literal["tokenizer", "autoencoder", "autoregressive", "decoder"]
Method = Literal["grpo", "flow_grpo", "dpo", "distillation"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Strict):
    """One source of samples; exactly one of ``scenes`` (with ``assets``), ``path``, ``cache`` and ``prompts``.

    Attributes:
        weight: how often it is drawn from, relative to the others; or by steps, ``{0: 1, 2000: 0.2}``: from each step
            on so often, before the first one not at all.
        scenes: composed pictures; ``assets`` is the folder that ``arimage data sprites`` made.
        path: people's own data, see :mod:`arimage.data.folders`.
        cache: a folder that ``arimage prepare`` made.
        prompts: a .txt file, a prompt a line, or a .jsonl file with ``prompt``, for a stage that learns from rewards.
        sides: pictures of ``path`` go into buckets of about these areas (side in pixels); those of ``prompts`` are
            squares of these sides.
        epochs: how often it is gone through at most; then the other sources have its share. None is without end.
        index: file of the index of ``path``; by default beside the data, or in the user's cache.
        shard_cache: a folder for local copies of remote shards, of ``shard_cache_gb`` gigabytes at most on each
            machine; None reads each sample by a range request.
        minimum_rating: samples of ``path`` below are left out.
        minimum_side: so are those whose shorter side has fewer pixels,
        maximum_aspect: whose longer side is more than so many times the shorter one,
        languages: that have no caption in one of these (``en``, ``zh``, ``mixed``, ``other``; empty is all),
        caption_characters: or none of so many characters (least, most); other captions of a sample are not read.
        drop_duplicates: of pictures that are the same or look almost the same the first is used; needs an index that
            was made with ``--verify``.
        balance: 0 takes samples as they come, 1 takes every ``category`` as often as the largest, values between
            raise the rare ones in part.
        max_repeats: how often an epoch may have a sample for that.
    """

    weight: Annotated[float, Field(gt=0)] | dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0)]] = 1.0
    scenes: SceneSettings | None = None
    assets: str | None = None
    path: str | None = None
    cache: str | None = None
    prompts: str | None = None
    epochs: int | None = Field(None, ge=1)
    sides: tuple[int, ...] = (256,)
    index: str | None = None
    shard_cache: str | None = None
    shard_cache_gb: float = Field(50.0, gt=0)
    minimum_rating: int = Field(1, ge=1, le=5)
    minimum_side: int = Field(1, ge=1)
    maximum_aspect: float | None = Field(None, ge=1)
    languages: tuple[Literal["en", "zh", "mixed", "other"], ...] = ()
    caption_characters: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    drop_duplicates: bool = False
    balance: float = Field(0.0, ge=0, le=1)
    max_repeats: int = Field(10, ge=1, le=255)

    @model_validator(mode="after")
    def _one(self) -> "SourceConfig":
        given = [name for name in ("scenes", "path", "cache", "prompts") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a source has exactly one of scenes, path, cache and prompts")
        if self.scenes is not None and self.assets is None:
            raise ValueError("scenes need assets, the folder that 'arimage data sprites' made")
        if self.scenes is not None and self.epochs is not None:
            raise ValueError("scenes have no end, and so no epochs")
        if isinstance(self.weight, dict) and not any(self.weight.values()):
            raise ValueError("weight: at some step it must be more than 0")
        return self

    def weight_at(self, step: int) -> float:
        """How often it is drawn from at an optimiser step."""
        if not isinstance(self.weight, dict):
            return self.weight
        begun = [first for first in self.weight if first <= step]
        return self.weight[max(begun)] if begun else 0.0


class CaptionConfig(_Strict):
    """Which caption of a sample is read.

    Attributes:
        dropout: share of captions that are emptied, for guidance of the visual tokens.
        kinds: how often each kind comes, by its name, the part before or after the slash, its language (``en``,
            ``zh``, ``mixed``, ``other``), or ``short`` (under about 100 letters) and ``long``; all evenly when empty.
    """

    dropout: float = Field(0.1, ge=0, le=1)
    kinds: dict[str, float] = Field(default_factory=dict)


class TokenizerTraining(_Strict):
    """Losses of the semantic tokenizer (weights), and how the codebook learns.

    Attributes:
        cell_classes: codes are classes of cells of scenes on neutral ground, which the encoder learns to tell from the
            whole picture (:mod:`arimage.training.cell_tokenizer`); of the settings below only those that say so count.
        classes: with ``cell_classes``, the file ``classes.safetensors`` of an earlier run, whose codes then keep their
            meaning; by default the run finds its own classes and writes them into its output.
        components, class_samples, class_iterations: with ``cell_classes``, principal components of a cell's pixels that
            are compared, scenes in which cells are gathered, and rounds of k-means.
        large_cells: with ``cell_classes``, the weight of a different cell in scenes twice as large as the smallest.
        flat_cell_weight: with ``cell_classes``, the weight of flat cells in the loss.
        degradation_prob: with ``cell_classes``, the share of views that are blurred and noisy, as rendered pictures
            are.
        frozen_encoder: train the quantiser alone, on the features of the encoder as it is.
        pixels, contrast, commitment, features: weights of the losses; ``features`` counts with a frozen encoder.
        decoder_layers, decoder_size: of the throw-away pixel decoder.
        text_layers: of the small text tower.
        codebook_decay, dead_below: of the codebook's moving averages; codes used less often are replaced.
        max_updates_per_code: so many tokens of a batch at most move one code, so that flat backgrounds, which are most
            of all tokens, do not take the codebook for themselves; None lets all.
        rotation_trick: pass gradients through the quantiser by rotation (Fifty et al. 2024, arXiv:2410.06424).
    """

    cell_classes: bool = False
    classes: str | None = None
    components: int = Field(96, ge=1)
    class_samples: int = Field(6000, ge=1)
    class_iterations: int = Field(15, ge=1)
    large_cells: float = Field(0.1, gt=0, le=1)
    flat_cell_weight: float = Field(0.1, ge=0, le=1)
    degradation_prob: float = Field(0.25, ge=0, le=1)
    frozen_encoder: bool = False
    pixels: float = Field(1.0, ge=0)
    contrast: float = Field(0.1, ge=0)
    commitment: float = Field(0.25, ge=0)
    features: float = Field(1.0, ge=0)
    decoder_layers: int = Field(2, ge=1)
    decoder_size: int = Field(192, ge=8)
    text_layers: int = Field(2, ge=1)
    codebook_decay: float = Field(0.95, gt=0, lt=1)
    dead_below: float = Field(0.2, ge=0)
    max_updates_per_code: int | None = Field(None, ge=1)
    rotation_trick: bool = True


class AutoencoderTraining(_Strict):
    """Losses of the latent autoencoder (weights).

    Attributes:
        crop: side of the training crops in pixels, a multiple of 32; 0 takes whole pictures.
        crop_sizes: other sides, and the share of the batches that have them; such a batch has fewer samples, so that
            it has as many pixels. Group norm sees other statistics in whole pictures than in crops of things.
        object_crop_prob: share of the crops that lie around a thing or a letter of a scene, the others lie anywhere.
        aligned: share of the crops that begin at multiples of 8 pixels, as latents do.
        pca_init: begin with an encoder that gives the principal components of 8x8 patches
            (:mod:`arimage.training.pca`); for an autoencoder that is not trained yet.
        l2: of squared differences, beside L1, whose weight is 1.
        edges: of picture gradients at three scales, the perceptual loss that needs no other network.
        perceptual: of features of ``perceptual_model``, a local folder of a vision model that transformers opens.
        kl: mean over latent elements.
        adversarial: of a patch discriminator, from step ``adversarial_from`` on.
        latent_scale: what latents are divided by (``latents_std``): each channel's own deviation; or, with ``pixels``,
            what makes a unit of every channel change the decoded pixels alike, so that the decoder's squared error of
            latents is one of pixels. The mean square over all channels is 1 either way.
        statistics_samples: pictures over which latent mean and deviation are measured at the end.
    """

    crop: int = Field(128, ge=0, multiple_of=32)
    crop_sizes: dict[Annotated[int, Field(ge=32, multiple_of=32)], float] = Field(default_factory=dict)
    object_crop_prob: float = Field(0.0, ge=0, le=1)
    aligned: float = Field(0.0, ge=0, le=1)
    pca_init: bool = False
    l2: float = Field(0.0, ge=0)
    edges: float = Field(1.0, ge=0)
    perceptual: float = Field(0.0, ge=0)
    perceptual_model: str | None = None
    kl: float = Field(5e-4, ge=0)
    adversarial: float = Field(0.0, ge=0)
    adversarial_from: int = Field(0, ge=0)
    latent_scale: Literal["deviation", "pixels"] = "deviation"
    statistics_samples: int = Field(256, ge=1)


class CopyHeads(_Strict):
    """Heads that begin by copying the code of the same cell from the last reference
    (:mod:`arimage.training.copy_heads`), where the chat template puts the text first.

    Attributes:
        layers: in which they are.
        side: pixels of a side of reference and target (square), from which their distance follows; by default the
            smallest that references have.
        key_value_head: which of each layer's, with the queries that share it.
    """

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    side: int | None = Field(None, ge=32, multiple_of=32)
    key_value_head: int = Field(0, ge=0)


class NamingHead(_Strict):
    """A head that begins by finding, at each code of a reference, the word of the prompt that names it.

    Attributes:
        layer: in which layer, counted from 0, above the first. What it finds only the layers above it can use.
        head: of the layer's queries. It takes the place of what was there.
        steps: of aligning codes and words before the first step (of 128 prompts; about half a second of a core each).
        prompts: of the stage's data, that are read for that.
    """

    layer: int = Field(2, ge=1)
    head: int = Field(0, ge=0)
    steps: int = Field(420, ge=1)
    prompts: int = Field(20_000, ge=1)


class AutoregressiveTraining(_Strict):
    """Losses of the autoregressive model.

    Attributes:
        preview: share of the pictures that begin with a preview; the others are their target alone. Below 1 the
            checkpoint can leave the preview out (option ``preview_grid``), and learns from shorter sequences.
        preview_shows: the picture itself, as the format means it, or a blank one: where a model is too small to learn
            a picture twice at two scales, it fills the place that the format keeps for the preview and no more.
        preview_weight: of the preview's tokens against the target's.
        end_weight: of the image end.
        label_smoothing: in [0, 1).
        focal: weigh each token by this much plus one minus the probability that the model gives it (focal loss of gamma
            1, Lin et al. 2017, arXiv:1708.02002): the few tokens that hang on the prompt, such as a thing's first, are
            otherwise drowned by those that follow from their neighbours. By default all weigh alike.
        codes_from_codebook: begin with rows of the visual tokens that are a projection of the codebook, so that codes
            that look alike start alike; for a model that does not know them yet.
        copy_heads: heads that begin by copying from a reference, for each size of pictures some of their own. In a
            model that is trained already they take the place of the heads that were there.
        induction_heads: two layers of which some heads begin by finding the code before, or the one above, in what came
            earlier, and copying what follows it there; also where a thing stands elsewhere. For a model that is not
            trained yet, whose chat template puts the text first.
        copy_task_prob: share of the edits that become exercises in copying: without a text, all codes of the sample
            renamed by a permutation of its own, and the last reference is the target. What a code means is no help
            there, so that a model learns to look its references up, which edits alone teach late.
        rename_prob: share of the other edits in which a random share of the codes that target and references have in
            common are replaced by random others, the same in all of them (random symbols, as in symbol tuning, Wei et
            al. 2023, arXiv:2305.08298). The instruction stays true, and what it keeps has to be looked up.
        kept_codes: things that an edit keeps have their reference's codes in its target too
            (:mod:`arimage.training.kept_codes`), for scenes on a grid of codes. Things that the tokenizer has never
            seen have others on another background, which nobody could foretell.
        changes: weight of a second task that training alone has: at each code of the last reference, to tell whether
            the edit changes it, so that what the prompt means is found where it stands. Of edits whose target has the
            reference's size and keeps more than the ground, which does not count, changed and kept codes counting
            alike; not of ``identity`` and ``combine``.
        changes_layer: after how many layers that is read off; by default half of them, so that the others can use it.
        alignment: weight of a third such task, contrastive: codes' rows of the embedding and a prompt's words, a third
            of the layers up, find each other among those of the batch. What a word names can then be recognised in a
            reference by attention alone. Needs a checkpoint that reads the text first.
        naming_head: a head that begins so, the codes' rows being aligned with the words before the first step. Among
            all other losses that takes very long. Needs a checkpoint that reads the text first.
        grpo: learn from rewards (the stage's ``reinforcement``) instead of from pictures.
        dpo: learn from pairs of a chosen and a rejected picture.
    """

    preview: float = Field(1.0, ge=0, le=1)
    preview_shows: Literal["picture", "blank"] = "picture"
    preview_weight: float = Field(1.0, ge=0)
    end_weight: float = Field(0.1, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    focal: float | None = Field(None, gt=0)
    codes_from_codebook: bool = False
    copy_heads: tuple[CopyHeads, ...] = ()
    induction_heads: tuple[int, int] | None = None
    copy_task_prob: float = Field(0.0, ge=0, le=1)
    rename_prob: float = Field(0.0, ge=0, le=1)
    kept_codes: bool = False
    changes: float = Field(0.0, ge=0)
    changes_layer: int | None = Field(None, ge=1)
    alignment: float = Field(0.0, ge=0)
    naming_head: NamingHead | None = None
    grpo: TokenPolicy | None = None
    dpo: Preferences | None = None


class Distillation(_Strict):
    """A decoder that needs few steps and no guidance, taught by the one that the stage starts from.

    Attributes:
        steps: that the student is for; at another number it is no good.
        teacher_substeps: of the teacher within each of them.
        guidance: of the teacher, which the student takes over.
    """

    steps: int = Field(4, ge=1)
    teacher_substeps: int = Field(4, ge=1)
    guidance: float = Field(1.5, ge=1)


class DecoderTraining(_Strict):
    """Flow matching of the diffusion transformer.

    Attributes:
        noise_mean, noise_deviation: of the logit-normal noise levels before the shift.
        noise_uniform: share of the samples whose noise levels are even instead, so that every level is seen. A mean of
            1 and a deviation of 1.2 leave 2 % of the samples below 0.2: many steps down there then roughen a picture
            (``sigma_min`` leaves them out).
        uncond_prob: share of samples without visual tokens, glyphs and references (the unconditional branch).
        drop_prior, drop_glyphs, drop_references: shares that lose one of them alone.
        corrupt: share of samples whose visual tokens are corrupted; of those, up to ``corrupt_share`` of the tokens
            become random codes.
        noise_levels_per_image: of each picture of a batch; what the frozen encoders make of it serves them all.
        crops_per_image: crops of each picture that are learnt from in its place, each at a noise level of its own; 0
            learns from whole pictures. They lie where codes differ from the picture's most frequent one, so that plain
            ground takes less of the time. References are cropped alike; where one has another size than the picture,
            both stay whole.
        crop_cells: side of a crop in cells of 32 px.
        full_image_prob: share of the batches that stay whole all the same; nothing else shows how a thing moves.
        copy_task_prob: share of the samples with references that become exercises in copying: the last reference is
            the target, no glyphs say what it shows, and in half of them no visual tokens either. Without them a decoder
            whose tokens say nearly everything learns late, if at all, to take from a reference what they leave out.
        rename_prob: share of the samples with references in which codes that the target has in common with them are
            replaced by random others, the same in all of them: how such a code looks can only be looked up, also where
            a thing has moved.
        kept_codes: things that an edit keeps have their reference's codes in its target too
            (:mod:`arimage.training.kept_codes`), as a model that copies them draws them.
        train_glyph_encoder: learn the glyph encoder too.
        codes_from_codebook: begin with embeddings of the visual tokens that are a projection of the codebook, so that
            codes that look alike start alike; for a decoder that is not trained yet.
        distillation: learn to jump where the decoder at the start would walk; None learns from the pictures alone.
        flow_grpo: learn from rewards (the stage's ``reinforcement``) instead of from pictures.
        dpo: learn from pairs of a chosen and a rejected picture (Diffusion-DPO).
    """

    noise_mean: float = 0.0
    noise_deviation: float = Field(1.0, gt=0)
    noise_uniform: float = Field(0.0, ge=0, le=1)
    uncond_prob: float = Field(0.1, ge=0, le=1)
    drop_prior: float = Field(0.02, ge=0, le=1)
    drop_glyphs: float = Field(0.02, ge=0, le=1)
    drop_references: float = Field(0.02, ge=0, le=1)
    corrupt: float = Field(0.3, ge=0, le=1)
    corrupt_share: float = Field(0.2, ge=0, le=1)
    noise_levels_per_image: int = Field(1, ge=1)
    crops_per_image: int = Field(0, ge=0)
    crop_cells: int = Field(4, ge=1)
    full_image_prob: float = Field(0.0, ge=0, le=1)
    copy_task_prob: float = Field(0.0, ge=0, le=1)
    rename_prob: float = Field(0.0, ge=0, le=1)
    kept_codes: bool = False
    train_glyph_encoder: bool = True
    codes_from_codebook: bool = False
    distillation: Distillation | None = None
    flow_grpo: FlowPolicy | None = None
    dpo: Preferences | None = None


class LoraConfig(_Strict):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) instead of whole weights.

    Attributes:
        rank, alpha: of the adapters.
        targets: names of the linear layers that get one; by default those of attention.
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "to_q", "to_k", "to_v", "to_out.0")


class SampleConfig(_Strict):
    """Pictures that are made every so often from fixed prompts, and fixed edits of held-out scenes."""

    prompts: tuple[str, ...] = ()
    edits: int = Field(0, ge=0, description="fixed edits, taken from the evaluation's records with sources")
    size: tuple[int, int] = (256, 256)
    steps: int = Field(20, ge=1)
    guidance: float = Field(1.5, ge=1)
    seed: int = 0


class TrainConfig(_Strict):
    """A stage of training.

    Attributes:
        train: which network.
        start: the checkpoint folder that it begins from.
        output: the folder of the run: its saved states, logs, samples, and the finished checkpoint.
        steps: optimiser steps.
        batch_size: samples of a process and micro-batch; ``accumulation`` micro-batches make a step.
        learning_rate, schedule, warmup, min_lr_ratio: cosine to ``min_lr_ratio`` times the rate, linear to it, or
            constant.
        muon: patterns of the names of matrices that learn by Muon instead of AdamW.
        clip: largest gradient norm.
        precision: auto is bf16 where the device multiplies it natively, else fp32; no is fp32, bf16 and fp16 mixed
            precision, whatever the device. A run goes on in the one that it began with.
        compile: compile the blocks of the networks (``torch.compile``).
        ema: decay of the weights' moving average, which is what is evaluated and exported; None is none.
        trainable, frozen: patterns of parameter names (fnmatch); what matches none of ``trainable``, or one of
            ``frozen``, stays as it is. A pattern that matches nothing is an error.
        vision_rows_only: of the embedding, only the rows of vision words learn.
        save_every, keep: states are saved every so many steps; the last ``keep`` and the best stay.
        on_spike: what to do when the loss is not finite or above ``spike_factor`` times its running median.
        assets, scenes: what every source of scenes has in common, under its own settings.
        max_bad_share: the run stops when more than that share of a data set's samples, rounded up to whole ones, cannot
            be used.
        restart: where the newest state was made with other settings, begin a new schedule of ``steps`` steps from its
            weights; the optimiser and the warm-up start afresh. Where it was made with these, the run goes on with it.
        replays: of a decoder: how many steps learn again from each batch, a while later, at other noise levels and
            otherwise augmented. What the frozen encoders made of it is kept on the device, so that a GPU need not wait
            for scenes.
        replay_window: so many batches are kept.
        reinforcement: rollouts and rewards, for ``autoregressive.grpo`` and ``decoder.flow_grpo``.
    """

    train: Subject
    start: str
    output: str
    seed: int = 0
    steps: int = Field(ge=1)
    batch_size: int = Field(8, ge=1)
    accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = Field(100, ge=0)
    min_lr_ratio: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    muon: tuple[str, ...] = ()
    clip: float = Field(1.0, gt=0)
    ema: float | None = Field(0.999, ge=0, lt=1)
    precision: Precision = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    trainable: tuple[str, ...] = ("*",)
    frozen: tuple[str, ...] = ()
    vision_rows_only: bool = False
    workers: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    evaluate_every: int = Field(500, ge=1)
    evaluation_batches: int = Field(8, ge=0)
    sample_every: int = Field(500, ge=1)
    on_spike: Literal["stop", "skip", "ignore"] = "stop"
    spike_factor: float = Field(10.0, gt=1)
    max_bad_share: float = Field(0.05, ge=0, le=1)
    restart: bool = False
    replays: int = Field(0, ge=0)
    replay_window: int = Field(300, ge=1)
    trackers: tuple[str, ...] = ("tensorboard",)
    assets: str | None = None
    scenes: dict[str, Any] = Field(default_factory=dict)
    data: tuple[SourceConfig, ...] = Field(min_length=1)
    evaluation: tuple[SourceConfig, ...] = ()
    captions: CaptionConfig = CaptionConfig()
    samples: SampleConfig = SampleConfig()
    tokenizer: TokenizerTraining = TokenizerTraining()
    autoencoder: AutoencoderTraining = AutoencoderTraining()
    autoregressive: AutoregressiveTraining = AutoregressiveTraining()
    decoder: DecoderTraining = DecoderTraining()
    reinforcement: RewardsConfig | None = None
    lora: LoraConfig | None = None

    @field_validator("precision", mode="before")
    @classmethod
    def _unquoted(cls, value: Any) -> Any:
        """YAML takes a ``no`` without quotes for false."""
        return "no" if value is False else value

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, values: Any) -> Any:
        """Give every source of scenes the stage's assets and scene settings, under its own."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name in ("data", "evaluation"):
            if not isinstance(values.get(name), (list, tuple)):
                continue
            sources: list[Any] = []
            for source in values[name]:
                if isinstance(source, dict) and isinstance(source.get("scenes"), dict):
                    shared = {"scenes": values.get("scenes") or {}}
                    if values.get("assets"):
                        shared["assets"] = values["assets"]
                    source = merged(shared, source)
                    if "tasks" in values[name][len(sources)]["scenes"]:
                        source["scenes"]["tasks"] = values[name][len(sources)]["scenes"]["tasks"]
                sources.append(source)
            values[name] = sources
        return values

    @property
    def method(self) -> Method | None:
        """How a half learns where it does not learn from pictures."""
        autoregressive, decoder = self.autoregressive, self.decoder
        chosen: dict[Method, Any] = {}
        if self.train == "autoregressive":
            chosen = {"grpo": autoregressive.grpo, "dpo": autoregressive.dpo}
        elif self.train == "decoder":
            chosen = {"flow_grpo": decoder.flow_grpo, "dpo": decoder.dpo, "distillation": decoder.distillation}
        given = [name for name, settings in chosen.items() if settings is not None]
        if len(given) > 1:
            raise ValueError(f"{self.train}: {' and '.join(given)} do not go together; a stage has one of them")
        return given[0] if given else None

    @property
    def rewarded(self) -> RewardsConfig | None:
        """Rollouts and rewards, of a stage that learns from them."""
        return self.reinforcement if self.method in ("grpo", "flow_grpo") else None

    @model_validator(mode="after")
    def _learnable_from_rewards(self) -> "TrainConfig":
        without_pictures = any(source.prompts is not None for source in (*self.data, *self.evaluation))
        if self.method not in ("grpo", "flow_grpo"):
            if without_pictures:
                raise ValueError("prompts without pictures are for autoregressive.grpo and decoder.flow_grpo")
            if self.reinforcement is not None:
                raise ValueError("reinforcement goes with autoregressive.grpo or decoder.flow_grpo")
            return self
        if self.reinforcement is None:
            raise ValueError(f"{self.train}.{self.method} needs reinforcement, which names the rewards")
        for name in ("steps", "save_every"):
            if getattr(self, name) % self.reinforcement.updates:
                raise ValueError(f"{name} must be a multiple of reinforcement.updates: states lie between rollouts")
        if self.accumulation % self.reinforcement.parts:
            raise ValueError("accumulation must be a multiple of reinforcement.parts")
        if any(source.cache is not None for source in (*self.data, *self.evaluation)):
            raise ValueError("rewards need pictures or scenes, which a prepared cache does not hold")
        if self.method == "flow_grpo" and without_pictures and self.decoder.flow_grpo.codes == "picture":  # type: ignore[union-attr]
            raise ValueError("prompts have no pictures to take codes from: set decoder.flow_grpo.codes=generated")
        if self.reinforcement.stop and not (self.evaluation and self.evaluation_batches):
            raise ValueError("reinforcement.stop needs evaluation data, which it is measured on")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.replays and (self.train != "decoder" or self.method not in (None, "distillation")):
            raise ValueError("replays are for the decoder that learns from pictures")
        if self.lora is not None and self.train not in ("autoregressive", "decoder"):
            raise ValueError("lora is for the autoregressive model and the decoder")
        if self.vision_rows_only and self.train != "autoregressive":
            raise ValueError("vision_rows_only is for the autoregressive model")
        if self.vision_rows_only and self.weight_decay:
            raise ValueError("vision_rows_only needs weight_decay 0, or text rows would decay")
        if sum(self.autoencoder.crop_sizes.values()) > 1 or min(self.autoencoder.crop_sizes.values(), default=0) < 0:
            raise ValueError("autoencoder.crop_sizes: the shares are not negative, and 1 at most together")
        if self.autoencoder.perceptual and not self.autoencoder.perceptual_model:
            raise ValueError("autoencoder.perceptual needs autoencoder.perceptual_model")
        return self
