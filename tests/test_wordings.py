"""Prompts in free words: what they say, and that those of the evaluation are not among them."""

import re
from pathlib import Path

import pytest

from arimage.data.assets import Assets
from arimage.data.scenes import Scenes, SceneSettings, vocabulary
from arimage.data.scenes.spec import scene_spec
from arimage.data.scenes.wordings import CHOICE, FRAMES, PICTURES, SLOT, wordings
from arimage.evaluation.phrasings import phrasings
from tests.tiny_assets import write_assets

EDITS = (
    "background",
    "replace",
    "add",
    "remove",
    "move",
    "add text",
    "change text",
    "remove text",
    "style",
    "identity",
)
SLOTS = {
    "body", "color", "a_color", "backdrop", "old", "a_old", "new", "a_new", "thing", "where", "to", "text", "ink",
    "style", "request",
}  # fmt: skip
LISTS = [
    (task, language, templates)
    for task, by_language in wordings().items()
    if task != "places"
    for language, templates in by_language.items()
]
EVALUATED = {
    "edit background": ("background",), "edit replace": ("replace",), "edit remove": ("remove",), "edit add": ("add",),
    "edit text": ("add text", "change text"), "edit style": ("style",), "subject": (PICTURES,),
    "placement": (PICTURES,), "background colour": (PICTURES,), "English text": (PICTURES,),
    "Chinese text": (PICTURES,),
}  # fmt: skip


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    place = tmp_path_factory.mktemp("assets")
    write_assets(place, ("noto", "fluent-flat"))
    return Assets.open(place)


@pytest.mark.parametrize(
    ("task", "language", "templates"), LISTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_templates_are_well_formed(task: str, language: str, templates: list[str]) -> None:
    assert len(set(templates)) == len(templates) or task == FRAMES
    for template in templates:
        assert set(SLOT.findall(template)) <= SLOTS, template
        plain = SLOT.sub("", CHOICE.sub("", template))
        assert not re.search(r"[\[\]{}|]", plain), template


def test_there_are_places_of_all_names() -> None:
    for language in ("en", "zh"):
        assert set(wordings()["places"][language]) == set(vocabulary.PLACES)


def as_pattern(template: str) -> str:
    """What a template can say, as a regular expression over :func:`bare` texts; any slot stands for any."""
    parts = []
    for piece in re.split(r"(\[[^\[\]]*\])", template):
        if piece.startswith("["):
            parts.append("(?:" + "|".join(re.escape(bare(choice)) for choice in piece[1:-1].split("|")) + ")")
        else:
            parts.append(re.escape(bare(piece)))
    return "".join(parts)


def bare(text: str) -> str:
    """Letters and slots alone."""
    return re.sub(r"[^\w@]", "", SLOT.sub("@", text).lower())


def said_by(kind: str, language: str) -> re.Pattern[str]:
    requests = [as_pattern(template) for task in EVALUATED[kind] for template in wordings()[task][language]]
    frames = ["@"] if EVALUATED[kind] == (PICTURES,) else [as_pattern(frame) for frame in wordings()[FRAMES][language]]
    whole = "|".join(frame.replace("@", f"(?:{'|'.join(requests)})") for frame in dict.fromkeys(frames))
    return re.compile(f"(?:{whole})")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", EVALUATED)
def test_no_phrasing_of_the_evaluation_is_among_them(kind: str, language: str) -> None:
    """In own words means in words that training never put so."""
    pattern = said_by(kind, language)
    example = SLOT.sub(
        "@", CHOICE.sub(lambda match: match[1].split("|")[0], wordings()[EVALUATED[kind][0]][language][0])
    )
    assert pattern.fullmatch(bare(example))
    assert not [text for text in phrasings()[kind][language] if pattern.fullmatch(bare(text))]


@pytest.mark.parametrize("task", EDITS)
def test_edits_are_asked_for_in_many_ways(assets: Assets, task: str) -> None:
    settings = {"tasks": {task: 1}, "free_wordings": 3, "patterns": 0.2}
    data, plain = (Scenes(assets, SceneSettings(**given)) for given in (settings, {**settings, "free_wordings": 0}))
    seen = set()
    for index in range(20):
        record, other = data[index], plain[index]
        told = {kind: text for kind, text in record.captions.items() if "free" not in kind}
        assert told == other.captions, "what there was is as it was"
        free = [text for kind, text in record.captions.items() if "free" in kind]
        assert not [text for text in free if re.search(r"[\[\]{}|]", text)]
        seen |= set(free)
        before, after = (scene_spec(facts["spec"]) for facts in (record.truth["sources"][-1], record.truth))
        if task == "replace":
            gone = next(one for one in before.subjects if one not in after.subjects)
            new = next(one for one in after.subjects if one not in before.subjects)
            for language in ("en", "zh"):
                names = [assets.sprites.concepts[one.concept].names[language] for one in (gone, new)]
                said = [text for kind, text in record.captions.items() if kind.startswith(f"{language}/free")]
                assert all(name in text for text in said for name in names)
        if task == "identity" and before.background.pattern == after.background.pattern == "plain":
            assert free
        if task == "change text":
            new = next(line for line in after.lettering.lines if line not in before.lettering.lines)
            assert all(new in text for text in free)
    assert len(seen) > (20 if task == "add text" else 40)


def test_pictures_are_described_in_many_ways(assets: Assets) -> None:
    settings = SceneSettings(tasks={"subject": 1, "text": 1}, free_wordings=2, patterns=0.0)
    data = Scenes(assets, settings)
    for index in range(20):
        record = data[index]
        spec = scene_spec(record.truth["spec"])
        for language in ("en", "zh"):
            said = [text for kind, text in record.captions.items() if kind.startswith(f"{language}/sentence/free")]
            assert len(said) == 2
            for subject in spec.subjects:
                assert (
                    all(assets.sprites.concepts[subject.concept].names[language] in text for text in said) or spec.alike
                )
            if spec.lettering is not None:
                assert all(line in text for text in said for line in spec.lettering.lines)


def test_a_patterned_background_is_left_to_the_captions(assets: Assets) -> None:
    data = Scenes(assets, SceneSettings(tasks={"subject": 1}, free_wordings=2, patterns=1.0))
    assert not [kind for kind in data[0].captions if "free" in kind]


def test_the_wordings_are_in_the_package() -> None:
    listed = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '"data/scenes/*.yaml"' in listed
