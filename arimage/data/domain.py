"""What a model is taught by scenes, as the ``domain.json`` of its folder says it."""

from typing import TYPE_CHECKING

from arimage.checkpoints.domain import Domain

if TYPE_CHECKING:
    from arimage.data.assets import Assets
    from arimage.data.scenes.settings import SceneSettings


def domain_of(settings: "SceneSettings", assets: "Assets") -> Domain:
    """The domain that training on such scenes teaches."""
    from arimage.data.colors import BY_NAME
    from arimage.data.scenes import Scenes

    composer = Scenes(assets, settings).composer
    concepts = [assets.sprites.concepts[code].names for code in composer.train_concepts]
    colors = [word for name in composer.colors for part in (BY_NAME[name].en, BY_NAME[name].zh) for word in part]
    return Domain(
        subjects=tuple((names["en"], names["zh"]) for names in concepts),
        colors=tuple(colors),
        letters=settings.english_letters,
        capitals=settings.capitals,
        characters="".join(sorted(set("".join(composer.words("zh"))))),
        row=settings.chinese_characters,
    )
