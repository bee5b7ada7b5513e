"""What is asked of a page: tags that match, unique ids, links with a target, pictures that load, nothing from outside."""

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.image

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Checked(HTMLParser):
    """A page that was read; `faults` has a line for each thing that is wrong."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.faults: list[str] = []
        self.images = 0
        self.headings: list[int] = []
        self.scripts = 0
        self.text: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]
        self.faults += [f"id '{name}' is given twice" for name in {i for i in self.ids if self.ids.count(i) > 1}]
        self.faults += [f"nothing has the id '{name}'" for name in self.links if name not in self.ids]
        steps = zip(self.headings, self.headings[1:], strict=False)
        self.faults += [f"a heading of level {two} follows one of {one}" for one, two in steps if two > one + 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if len(found) < len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"] or "")
        self.faults += [f"<{tag}> has {name}" for name in found if name.startswith("on")]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.scripts += tag == "script"
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            self._address(tag, name, found.get(name))
        self.links += [
            name for key in ("aria-labelledby", "aria-describedby") for name in (found.get(key) or "").split()
        ]
        if tag == "img":
            self.images += 1
            if not (found.get("alt") or "").strip():
                self.faults.append("an image has no alt")
            self._picture(found.get("src") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def _address(self, tag: str, name: str, value: str | None) -> None:
        if value is None or value.startswith("data:"):
            return
        if tag == "a" and value.startswith("#"):
            self.links.append(value[1:])
        else:
            self.faults.append(f"<{tag}> has {name}={value}")

    def _picture(self, address: str) -> None:
        kind, _, content = address.partition(";base64,")
        try:
            raw = base64.b64decode(content, validate=True)
            if kind == "data:image/svg+xml":
                assert ElementTree.fromstring(raw).tag == "{http://www.w3.org/2000/svg}svg"
            else:
                assert kind == "data:image/png"
                assert matplotlib.image.imread(io.BytesIO(raw)).size > 0
        except Exception as error:
            self.faults.append(f"a picture cannot be read: {error!r}")


def checked(text: str) -> Checked:
    """Read a page, and fail if anything is wrong with it."""
    found = Checked(text)
    assert text.startswith("<!doctype html>")
    assert not found.faults, found.faults
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert found.scripts == 1
    return found
