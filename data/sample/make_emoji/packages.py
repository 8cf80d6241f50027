"""The npm packages that the sample's emoji are drawn from: pinned, checked, unpacked.

Each set of drawings comes as SVG in one JSON file of an `@iconify-json` package, which calls the
drawings by code point in a second one. Names and keywords are Unicode CLDR's, groups and order
those of emojibase, which copies Unicode's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Package:
    """One version of one package, and what its archive must hash to."""

    name: str
    version: str
    sha512: str

    @property
    def file_name(self) -> str:
        """What `npm pack` calls the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


STYLES = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
}
"""Noto Emoji, Twemoji, OpenMoji and Fluent Emoji (flat)."""
CLDR = Package(
    "cldr-annotations-full",
    "48.2.0",
    "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


class Packages:
    """The archives in one folder, downloaded where they are missing.

    Args:
        folder: keeps the archives between runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read_json(self, package: Package, member: str) -> Any:
        """One JSON file of a package.

        Raises:
            SystemExit: the archive is not the pinned one.
        """
        path = self._folder / package.file_name
        if not path.exists():
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
            subprocess.run(command, cwd=self._folder, check=True)
        found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if found != package.sha512:
            raise SystemExit(
                f"{path}: found sha512-{found}, expected sha512-{package.sha512}. Remove the file; "
                "if it comes again so, the package is not the one that the sample was made from."
            )
        with tarfile.open(path) as archive:
            stream = archive.extractfile(f"package/{member}")
            assert stream is not None
            return json.load(stream)


class Drawings:
    """The drawings of one style, by code points."""

    def __init__(self, packages: Packages, style: str) -> None:
        self._icons = packages.read_json(STYLES[style], "icons.json")
        self._names = packages.read_json(STYLES[style], "chars.json")

    def find(self, code_points: str) -> str | None:
        """The SVG of an emoji, or None where the style has none.

        Args:
            code_points: hexadecimal, joined by "-"; variation selectors may be missing.
        """
        wanted = code_points.lower()
        name = self._names.get(wanted) or self._names.get(wanted.replace("-fe0f", ""))
        if name is None:
            return None
        icon = self._icons["icons"].get(name)
        if icon is None:
            icon = self._icons["icons"][self._icons["aliases"][name]["parent"]]
        width = icon.get("width", self._icons["width"])
        height = icon.get("height", self._icons["height"])
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
