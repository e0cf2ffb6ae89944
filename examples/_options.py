"""What several examples share: their options on the command line."""

import argparse
import tempfile
from pathlib import Path

SUFFIXES = (".png", ".svg", ".pdf")


class Options(argparse.ArgumentParser):
    """A parser with `--quick` and `--out`, and with counts that have one default for each of the two."""

    def __init__(self, description: str, picture: str):
        super().__init__(description=description)
        self._picture = picture
        self._counts: dict[str, tuple[int, int, int]] = {}
        self.add_argument("--quick", action="store_true", help="a short run that shows only that everything works")
        where = f"{picture} next to the script; if quick, in the folder for temporary files"
        self.add_argument("--out", type=Path, help=f"the picture (default: {where})")

    def add_count(self, name: str, what: str, default: int, quick: int, least: int = 1) -> None:
        self._counts[name] = default, quick, least
        limit = f", at least {least}" if least > 1 else ""
        self.add_argument(f"--{name}", type=int, help=f"{what}{limit} (default: {default}; if quick, {quick})")

    def parse(self) -> argparse.Namespace:
        args = self.parse_args()
        for name, (default, quick, least) in self._counts.items():
            attribute = name.replace("-", "_")
            if getattr(args, attribute) is None:
                setattr(args, attribute, quick if args.quick else default)
            if getattr(args, attribute) < least:
                self.error(f"--{name} must be at least {least}, got {getattr(args, attribute)}")
        folder = Path(tempfile.gettempdir()) if args.quick else Path(__file__).parent
        args.out = args.out or folder / self._picture
        if args.out.suffix not in SUFFIXES or not args.out.parent.is_dir():
            self.error(
                f"--out must be a file in a folder that exists, ending in {' or '.join(SUFFIXES)}, got {args.out}"
            )
        return args
