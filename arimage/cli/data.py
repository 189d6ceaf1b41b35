"""``arimage data``: artwork, words, scenes, and people's own data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arimage.cli import options

if TYPE_CHECKING:
    from arimage.data.check import Report
    from arimage.data.records import Record

app = typer.Typer(help="Build training data, look at it, and check your own.", no_args_is_help=True)
LISTED = 20


@app.command("sprites")
def sprites(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")] = Path("data/nano"),
    downloads: Annotated[Path, typer.Option("--downloads", help="Where fetched packages are kept.")] = Path("artwork"),
    style: Annotated[
        list[str] | None, typer.Option("--style", help="A style of artwork; may be repeated. Default: nano's.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", help="A group of concepts; may be repeated. Default: nano's.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All styles and groups that may be trained on, with variants.")
    ] = False,
    size: Annotated[int, typer.Option("--size", help="Side of a sprite in pixels.", min=16, max=1024)] = 160,
    quiet: options.Quiet = False,
) -> None:
    """Fetch open artwork, fonts and names, and pack what scenes are composed of.

    arimage data sprites -o data/nano

    arimage data sprites --all --size 256 -o data/all
    """
    from arimage.cli.console import Console
    from arimage.data.assets import SPRITES
    from arimage.data.build import NANO_GROUPS, NANO_STYLES, build_assets
    from arimage.files import check_writable

    check_writable([output / SPRITES])
    console = Console(quiet)
    built = build_assets(
        output,
        downloads,
        styles=None if everything else tuple(style or NANO_STYLES),
        groups=None if everything else tuple(group or NANO_GROUPS),
        variants=everything,
        size=size,
        say=console.note,
    )
    for name, count in sorted(built.sprites.kept.items()):
        print(f"{name}: {count} sprites")
    for reason, count in sorted(built.sprites.dropped.items()):
        print(f"dropped, {reason}: {count}")
    print(f"fonts: {len(built.fonts)} faces; words: {built.words['en']} English, {built.words['zh']} Chinese")
    for name, reason in built.fonts_dropped.items():
        print(f"dropped, font {name}: {reason}")
    for name, count in built.sizes.items():
        print(f"{output / name}: {count / 1e6:.1f} MB")


@app.command("words")
def words(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path("words.json"),
    count: Annotated[int, typer.Option("--count", help="Words and characters, both languages.", min=100)] = 50_000,
) -> None:
    """Write a frequency-sorted list of English words and Chinese words and characters.

    arimage data words -o data/nano/words.json
    """
    from arimage.data.words import build_words
    from arimage.files import check_writable

    check_writable([output])
    counts = build_words(output, count)
    print(f"{output}: {counts['en']} English, {counts['zh']} Chinese")


@app.command("index")
def index(
    path: Annotated[str, typer.Argument(help="Folder, .tar, .parquet or .jsonl file, local or remote.")],
    file: Annotated[Path | None, typer.Option("--index", help="File of the index. Default: beside the data.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Decode all pixels, and find duplicates.")] = False,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="That share the work. Default: one for each core.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Look through your own data once, so that training starts in seconds; again after shards were added.

    arimage data index s3://bucket/photos --index photos.parquet
    """
    from arimage.cli.console import Console
    from arimage.data.folders import OwnData
    from arimage.files import check_writable

    check_writable([file] if file is not None else [])
    console = Console(quiet)
    data = OwnData(
        path, file, verify=verify, processes=processes,
        on_shard=lambda done, of: console.note(f"{done} of {of} shards"),
    )  # fmt: skip
    found = data.entries
    print(f"{found.file}: {len(found)} samples in {len(found.shards)} shards, {found.faults} cannot be used")
    for row, fault, key in found.faulty(LISTED):
        print(f"  problem: {found.name(row, data.storage, key)}: {fault}")
    if found.faults > LISTED:
        print(f"  and {found.faults - LISTED} more problems (arimage data check {path} --json lists all)")


@app.command("check")
def check(
    path: Annotated[str, typer.Argument(help="Folder, .tar, .parquet or .jsonl file, local or remote.")],
    side: Annotated[
        list[int] | None, typer.Option("--side", help="Buckets of about side x side pixels; may be repeated.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG).")] = None,
    index: Annotated[Path | None, typer.Option("--index", help="File of the index. Default: beside the data.")] = None,
    json: options.Json = False,
) -> None:
    """Validate your own data: sizes, buckets, captions, languages, duplicates, unreadable files.

    arimage data check photos/ --side 512 --sheet photos.png
    """
    from arimage.data.buckets import bucket_sizes
    from arimage.data.check import check as check_data
    from arimage.data.folders import OwnData
    from arimage.errors import DataError, UsageError
    from arimage.files import check_writable

    check_writable([path for path in (sheet, index) if path is not None])
    try:
        buckets = tuple(size for value in side or [512] for size in bucket_sizes(value))
    except ValueError as error:
        raise UsageError(f"--side: {error}") from None
    report, shown = check_data(OwnData(path, index, verify=True), buckets)
    if sheet is not None and shown:
        _save_sheet(shown, sheet, 4)
    if json:
        from arimage.cli.console import print_json

        print_json(report.as_json())
    else:
        _print_report(report)
    if not report.usable:
        raise DataError(f"{path} holds no usable sample; the first: {report.problems[0][1]}")


def _print_report(report: "Report") -> None:
    lines: dict[str, Any] = {
        "samples": f"{report.samples}, {report.usable} usable, {report.edits} edits",
        "sources": f"{report.sources.get('aligned', 0)} are cropped with their target, "
        f"{report.sources.get('whole', 0)} of another shape stay whole",
        "sizes": ", ".join(f"{name} {width}x{height}" for name, (width, height) in report.sizes.items()),
        "buckets": ", ".join(f"{name}: {count}" for name, count in report.buckets.items()),
        "cropped": ", ".join(f"{name} {share:.0%}" for name, share in report.cropped.items()),
        "enlarged": f"{report.enlarged} pictures are smaller than their bucket",
        "captions a sample": ", ".join(f"{name}: {count}" for name, count in report.captions.items()),
        "caption characters": ", ".join(f"{name} {count}" for name, count in report.caption_characters.items()),
        "languages": ", ".join(f"{name}: {count}" for name, count in report.languages.items()),
        "ratings": ", ".join(f"{name}: {count}" for name, count in sorted(report.ratings.items())),
        "duplicates": f"{len(report.duplicates)} groups, {len(report.near_duplicates)} more that look almost the same",
    }
    if not report.edits:
        del lines["sources"]
    for name, text in lines.items():
        print(f"{name:20} {text}")
    for kind, groups in (("same", report.duplicates), ("almost the same", report.near_duplicates)):
        for names in groups[:LISTED]:
            print(f"  {kind}: {', '.join(names)}")
    for _, reason in report.problems[:LISTED]:
        print(f"  problem: {reason}")
    if len(report.problems) > LISTED:
        print(f"  and {len(report.problems) - LISTED} more problems (--json lists all)")


@app.command("show")
def show(
    source: Annotated[
        str, typer.Argument(help="A training stage (.yaml), a folder of 'arimage data sprites', or your own data.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write.")] = Path("samples.png"),
    count: Annotated[int, typer.Option("-n", "--count", help="Samples to draw.", min=1, max=400)] = 16,
    first: Annotated[int, typer.Option("--first", help="Index of the first one.", min=0)] = 0,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Tasks of scenes; may be repeated. Default: all.")
    ] = None,
    columns: Annotated[int, typer.Option("--columns", min=1, max=20, help="Samples a row.")] = 4,
    size: Annotated[int, typer.Option("--size", help="Side of scenes in pixels.", min=64)] = 256,
) -> None:
    """Draw samples with their captions into one picture.

    arimage data show data/nano --task replace --task style -o edits.png

    arimage data show configs/nano/decoder-256.yaml -n 32 -o batch.png
    """
    from arimage.files import check_writable

    check_writable([output])
    records, fonts = _records(source, count, first, task, size)
    _save_sheet(records, output, columns, fonts)
    print(output)


@app.command("captions")
def captions(
    source: Annotated[str, typer.Argument(help="As in 'show'.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Text file to write.")] = Path("captions.txt"),
    count: Annotated[int, typer.Option("-n", "--count", help="Samples to take captions of.", min=1)] = 5000,
    size: Annotated[int, typer.Option("--size", help="Side of scenes in pixels.", min=64)] = 64,
) -> None:
    """Write captions, one a line, to train a tokenizer on (arimage init --corpus).

    arimage data captions data/nano -o captions.txt
    """
    from arimage.files import check_writable, write_whole

    check_writable([output])
    records, _ = _records(source, count, 0, None, size)
    lines = [caption for record in records for caption in record.captions.values()]
    write_whole(output, ("\n".join(lines) + "\n").encode())
    print(f"{output}: {len(lines)} captions")


@app.command("domain")
def domain(
    config: Annotated[Path, typer.Argument(help="An evaluation, for example configs/nano/evaluate.yaml.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path("domain.json"),
    notice: Annotated[str, typer.Option("--notice", help="Said with every prompt, of an unfinished model.")] = "",
) -> None:
    """Write down what a small model is taught; in its checkpoint folder it lets the commands say when a prompt is not.

    arimage data domain configs/nano/evaluate.yaml -o arimage/models/nano/domain.json
    """
    from arimage.data.assets import Assets
    from arimage.data.domain import domain_of
    from arimage.evaluation.config import EvaluateConfig
    from arimage.files import check_writable, write_whole
    from arimage.yaml_files import load_yaml

    check_writable([output])
    wanted = load_yaml(config, EvaluateConfig, [])
    scenes = next(iter(wanted.groups.values())).scenes
    made = domain_of(scenes, Assets.open(wanted.assets)).model_copy(update={"notice": notice})
    write_whole(output, (made.model_dump_json() + "\n").encode())
    print(f"{output}: {len(made.subjects)} subjects, {len(made.characters)} Chinese characters")


def _records(source: str, count: int, first: int, tasks: list[str] | None, size: int) -> "tuple[list[Record], Any]":
    """Records of a stage, of scenes, or of people's own data; and fonts for their captions."""
    from itertools import islice

    from arimage.cli.console import Console
    from arimage.data.assets import SPRITES, Assets
    from arimage.data.folders import OwnData, readable
    from arimage.data.scenes import Scenes, SceneSettings
    from arimage.data.scenes.settings import TASKS
    from arimage.errors import DataError, UsageError

    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return _stage_records(path, count, first, tasks)
    if (path / SPRITES).exists():
        assets = Assets.open(path)
        for task in tasks or ():
            if task not in TASKS:
                raise UsageError(f"--task: there is no task {task!r}; known are {', '.join(TASKS)}")
        try:
            settings = SceneSettings(tasks=dict.fromkeys(tasks or TASKS, 1.0), sizes=((size, size),))
        except ValueError:
            raise UsageError(f"--size must be a multiple of 32 and at least 64, got {size}") from None
        scenes = Scenes(assets, settings)
        return [scenes[index] for index in range(first, first + count)], assets.fonts
    if tasks:
        raise UsageError("--task is for scenes; your own data has none")
    console = Console()
    found = readable(OwnData(source)[first:], lambda name, reason: console.note(f"left out: {reason}"))
    records = list(islice(found, count))
    if not records:
        raise DataError(f"{source} holds no usable sample from number {first} on")
    return records, None


def _stage_records(path: Path, count: int, first: int, tasks: list[str] | None) -> "tuple[list[Record], Any]":
    from arimage.data.assets import Assets
    from arimage.errors import UsageError
    from arimage.training.batches import StepBatches
    from arimage.training.config import TrainConfig
    from arimage.yaml_files import load_yaml

    if tasks:
        raise UsageError("--task is for a folder of assets; a stage says its tasks itself")
    config = load_yaml(path, TrainConfig)
    batches = StepBatches(config.data, config.batch_size, lambda examples: {}, config.captions, seed=config.seed)
    records: list[Record] = []
    step = first // config.batch_size
    while len(records) < count:
        records += [example.pictured for example in batches.examples(step)[0]]
        step += 1
    folders = [source.assets for source in config.data if source.assets]
    return records[:count], Assets.open(folders[0]).fonts if folders else None


def _save_sheet(records: "list[Record]", path: Path, columns: int, fonts: Any = None) -> None:
    import io

    from arimage.data.sheet import contact_sheet
    from arimage.files import write_whole

    buffer = io.BytesIO()
    contact_sheet(records, columns, fonts=fonts).save(buffer, "PNG", optimize=True)
    write_whole(path, buffer.getvalue())
