"""The recipes of CONTRIBUTING.md: each place that one names exists, and has every member that is there today.

So whoever adds a member and forgets a place finds the place named here. Members are found where a recipe begins: in
the file that cannot be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from interlace.engine.sampling_params import SamplingParams
from interlace.models.families import FAMILIES
from tokenweave.plan import Op

ROOT = Path(__file__).parent.parent
PACKAGES = {name: ROOT / "packages" / name / "src" / name for name in ("emucxl", "tokenweave", "interlace")}
PROVIDERS = ROOT / "packages/emucxl/native/src/provider"
COMMUNICATORS = PACKAGES["tokenweave"] / "communicators"
KERNELS = PACKAGES["tokenweave"] / "kernels"


@dataclass(frozen=True)
class Recipe:
    """The members that a recipe adds to, and how each place writes them: a pattern with the member's name for {}.

    An empty pattern asks for the place alone. `exempt` has the members that a place lacks, and why.
    """

    members: Callable[[], list[str]]
    places: Mapping[str, str]
    exempt: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    spellings: Callable[[str], Mapping[str, str]] = lambda member: {"upper": member.upper()}


def providers() -> list[str]:
    sources = "".join(path.read_text() for path in PROVIDERS.glob("*.c"))
    return re.findall(r"^const provider provider_(\w+) = ", sources, re.MULTILINE)


def communicators() -> list[str]:
    """The modules of the folder that have a subclass of Communicator, which wrappers of another are not."""
    wrapper = "linked"
    subclass = re.compile(r"^class \w+Communicator\(\w*Communicator\)", re.MULTILINE)
    return [
        path.stem
        for path in COMMUNICATORS.glob("*.py")
        if subclass.search(path.read_text()) and path.stem != wrapper
    ]


def kernels() -> list[str]:
    sources = "".join(path.read_text() for path in KERNELS.glob("*.py"))
    return re.findall(r"^def native_(\w+)\(", sources, re.MULTILINE)


REPLAYED = "packages/tokenweave/native/replay/functions.cpp"
JOINED_ELSEWHERE = {
    "symm_mem": "`tokenweave.communicators.gpus` joins ranks on GPUs, and chooses what joins them"
}
ENDS_A_REQUEST = dict.fromkeys(
    ("max_tokens", "stop", "stop_token_ids", "ignore_eos", "skip_special_tokens", "cache_salt"),
    "no token is chosen by it",
)
RECIPES = {
    "Add a model family": Recipe(
        lambda: list(FAMILIES),
        {
            "interlace/models/families.py": r'Family\(\s*"{}",',
            "tests/support/tiny_models.py": r'^    "\w+": \(\s*"{model_type}",',
            "docs/models.md": r"^\| `{}` \|",
        },
        spellings=lambda family: {"model_type": FAMILIES[family].hf.model_type},
    ),
    "Add a sampling option": Recipe(
        lambda: [each.name for each in fields(SamplingParams)],
        {
            "interlace/engine/sampling_params.py": r'^        .*[("]{}"',
            "interlace/engine/sampler.py": r"\b(params|sequence)\.{}\b",
            "interlace/cli/options.py": r'^    "{}": _option',
            "interlace/cli/report.py": r'^    "{}",$',
            "docs/engine.md": r"^\|.*`{}`.*\|",
            "packages/interlace/tests/engine/test_sampling_params.py": r'^    "{}": ',
            "packages/interlace/tests/engine/test_sampler.py": r'"{0}": |\b{0}=',
        },
        {
            "interlace/engine/sampler.py": ENDS_A_REQUEST,
            "packages/interlace/tests/engine/test_sampler.py": {
                name: why for name, why in ENDS_A_REQUEST.items() if name != "max_tokens"
            },
            "interlace/cli/options.py": dict.fromkeys(
                ("stop_token_ids", "skip_special_tokens"), "programs know ids; people read text"
            )
            | {"cache_salt": "a command has one user"},
            "interlace/cli/report.py": ENDS_A_REQUEST
            | {"seed": "has a key of its own", "logprobs": "has a key of its own"},
        },
    ),
    "Add a communicator": Recipe(
        communicators,
        {
            "tokenweave/communicators/": "",
            "tokenweave/communicators/__init__.py": r'^    "\w+Communicator": "{}",',
            "tokenweave/communicators/available.py": r'^ +"{}": ',
            "tests/support/rank_groups.py": r'"{}["-]',
            "packages/tokenweave/tests/test_communicators.py": r'\("{}["-]',
            "interlace/engine/config.py": r'^COMMUNICATORS = .*"{}"',
            "interlace/engine/ranks/": r"from tokenweave\.communicators\.{} import",
            "interlace/cli/options.py": r'metavar="auto\|.*\b{}\b',
            "docs/communicators.md": r"^\| `{}` \|",
        },
        {"interlace/engine/ranks/": JOINED_ELSEWHERE},
    ),
    "Add a step": Recipe(
        lambda: [op.label for op in Op],
        {
            "tokenweave/ops.py": r'^    {upper} = Operation\(\s*"{}",\s*Lane\.\w+,\s*"{handler}"',
            "tokenweave/plan.py": r"\bOp\.{upper}\b",
            "interlace/models/decoder.py": r"^    def {handler}\(self, step",
            "packages/tokenweave/tests/test_plan.py": r"\bOp\.{upper}\b|\b{}\b",
        },
        spellings=lambda label: {"upper": label.upper(), "handler": Op.named(label).handler},
    ),
    "Add a kernel": Recipe(
        kernels,
        {
            "tokenweave/kernels/": r"^def reference_{}\(",
            "tokenweave/kernels/base.py": r"^    def {}\(",
            "tokenweave/kernels/reference.py": r"\breference_{}\(",
            "tokenweave/kernels/compiled.py": r"\bnative_{}\(",
            "tokenweave/kernels/cuda/backend/cuda_kernels.py": r"^    def {}\(",
            "packages/tokenweave/native/include/tokenweave.h": r"^TW_API int tw_{}\(",
            "packages/tokenweave/native/kernels/": r"^int tw_{}\(",
            "tokenweave/native.py": r'^    "tw_{}": ',
            "packages/tokenweave/tests/test_kernels.py": r'\.{0}\(|"{0}"',
            REPLAYED: r"TW_REPLAYED\(tw_{}\)",
        },
        exempt={REPLAYED: {"pack": "no step packs"}},
    ),
    "Add a provider of memory": Recipe(
        providers,
        {
            "packages/emucxl/native/src/provider/": r"^const provider provider_{} = ",
            "packages/emucxl/native/include/emucxl/context.h": r"^ +EMX_PROVIDER_{upper} = \d",
            "packages/emucxl/native/src/provider/provider.c": r"&provider_{}\b",
            "emucxl/abi.py": r"\bPROVIDER_{upper}\b",
            "emucxl/providers.py": r"\babi\.PROVIDER_{upper}\b",
            "tests/support/provider_cases.py": r"\babi\.PROVIDER_{upper}\b",
            "docs/memory/providers.md": r"^## {}$",
        },
    ),
}


def text_of(place: str) -> str:
    """The text of a file, or of all files of a folder. A place of a package is short for its place in src/."""
    package, _, rest = place.partition("/")
    path = PACKAGES[package] / rest if package in PACKAGES else ROOT / place
    files = [path] if path.is_file() else sorted(path.glob("*.[pch]*"))
    assert files, f"there is no {place}"
    return "\n".join(each.read_text() for each in files)


def steps() -> dict[str, list[str]]:
    """The numbered places of each recipe in CONTRIBUTING.md: what stands before the first colon."""
    sections = (ROOT / "CONTRIBUTING.md").read_text().split("\n## ")[1:]
    recipes = {section.partition("\n")[0]: section for section in sections if section.startswith("Add ")}
    return {
        name: re.findall(r"^\d+\. `([^`]+)`:", section, re.MULTILINE) for name, section in recipes.items()
    }


def test_every_recipe_and_each_of_its_places_is_followed() -> None:
    assert {name: sorted(places) for name, places in steps().items()} == {
        name: sorted(recipe.places) for name, recipe in RECIPES.items()
    }


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, each in RECIPES.items() for place in each.places]
)
def test_every_member_is_in_every_place_of_its_recipe(name: str, place: str) -> None:
    recipe, text = RECIPES[name], text_of(place)
    members = recipe.members()
    assert len(members) > 2
    written = {each: recipe.places[place].format(each, **recipe.spellings(each)) for each in members}
    missing = {member for member, pattern in written.items() if not re.search(pattern, text, re.MULTILINE)}
    assert missing == set(recipe.exempt.get(place, {})), f"{place}: see '{name}' in CONTRIBUTING.md"
