"""How a page looks: pictures of it in every form, and what axe finds in it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

FOLDER = Path(os.environ.get("CARAVAN_SCREENSHOTS") or Path(__file__).parent / "out")
# A desk and a phone, in CSS pixels.
WIDTHS = {1280: 900, 390: 844}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# The brightest a dark page's background may be in any colour, of 255.
DARK = 100
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def forms(page: Page) -> Iterator[str]:
    """Bring the page into each form in turn; yields the form's name."""
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            yield f"{width}-{scheme}"


def shoot(page: Page, name: str) -> None:
    """Take a picture of the whole page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=True)


def is_dark(page: Page) -> bool:
    """Is it dark where nothing stands? Looked at in the picture: what style sheets say may be overruled."""
    size = page.viewport_size
    assert size is not None
    corner = {"x": 1, "y": size["height"] - 2, "width": 1, "height": 1}
    return max(only_pixel(page.screenshot(clip=corner))) < DARK  # type: ignore[arg-type]


def only_pixel(png: bytes) -> bytes:
    """Red, green and blue of a picture of one pixel: without a neighbour, every filter leaves it as it is."""
    length = int.from_bytes(png[(at := png.index(b"IDAT")) - 4 : at])
    # The end of the stream may be in a chunk of its own.
    return zlib.decompressobj().decompress(png[at + 4 : at + 4 + length])[1:4]


def overflow(page: Page) -> int:
    """How many pixels the page is wider than the window: what a phone would have to push aside."""
    found: int = page.evaluate(OVERFLOW)
    return found


def barriers(page: Page) -> list[str]:
    """What axe objects to, one line for each rule with the places."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']} ({rule['help']}): {[place_of(node) for node in rule['nodes'][:5]]}" for rule in found]


def place_of(node: dict[str, object]) -> str:
    return f"{node['target']} {str(node['html'])[:200]} {str(node.get('failureSummary', ''))[:300]}"
