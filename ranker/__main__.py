"""The command `ranker`: `ranker NAME ...` is `python -m ranker.NAME ...`."""

import ast
import difflib
import pathlib
import runpy
import sys
from collections.abc import Sequence

_PACKAGE = pathlib.Path(__file__).parent


def commands() -> dict[str, str]:
    """What can be run, by name: the first line of what each says of itself."""
    files = {path.stem: path for path in _PACKAGE.glob("*.py")}
    files |= {path.parent.name: path for path in _PACKAGE.glob("*/__main__.py")}
    found = {}
    for name, path in sorted(files.items()):
        text = path.read_text(encoding="utf-8")
        if not name.startswith("_") and (
            path.name == "__main__.py" or '__name__ == "__main__"' in text
        ):
            lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
            found[name] = lines[0] if lines else ""
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names, with the rest of them."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ranker COMMAND ...\n")
        for name, line in known.items():
            print(f"  {name:<10}{line}")
        print("\nranker COMMAND --help shows the flags of a command.")
        return
    name, *rest = arguments
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SystemExit(
            f"error: ranker has no command {name!r}; {hint}There are {', '.join(known)}"
        )
    sys.argv = [f"ranker {name}", *rest]
    runpy.run_module(f"ranker.{name}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
