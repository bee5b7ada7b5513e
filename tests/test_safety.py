"""No call in the package runs code that is in a file, unpickles, or unpacks an archive to the disk."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("pyro_vi", "models", "guides") for path in sorted((ROOT / folder).rglob("*.py"))]
NEEDED = {
    "np.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
FORBIDDEN = {
    *("eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"),
    *("joblib.load", "pd.read_pickle", "yaml.load", "os.system", "os.popen", "torch.hub.load", "np.fromregex"),
}


def wrong_calls(text: str) -> list[str]:
    found = []
    for call in ast.walk(ast.parse(text)):
        if not isinstance(call, ast.Call):
            continue
        name, options = ast.unparse(call.func), {option.arg: option.value for option in call.keywords}
        if name in NEEDED:
            option, value = NEEDED[name]
            given = options.get(option)
            if not (isinstance(given, ast.Constant) and given.value is value):
                found.append(f"{name} without {option}={value}")
        elif name in FORBIDDEN or name.endswith((".extractall", ".extract")):
            found.append(name)
        elif isinstance(shell := options.get("shell"), ast.Constant) and shell.value:
            found.append(f"{name} with a shell")
    return found


@pytest.mark.slow
def test_no_call_runs_what_is_in_a_file() -> None:
    assert len(SOURCES) > 200
    found = {str(path.relative_to(ROOT)): wrong_calls(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "call",
    [
        "np.load(f)",
        "torch.load(f, weights_only=False)",
        "eval(x)",
        "archive.extractall()",
        "subprocess.run(x, shell=True)",
    ],
)
def test_a_wrong_call_is_found(call: str) -> None:
    assert len(wrong_calls(f"def f():\n    {call}")) == 1
