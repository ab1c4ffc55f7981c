"""Usual mistakes of plugin authors: the kit and training's first step name the cause and the fix of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from sddit.cli.app import call
from sddit.plugins.host import using_host
from sddit.testing import TOY_PAIR_RECIPE, toy_host

SOURCE = """
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from sddit import hookimpl
from sddit.interfaces import Cost, LossParams, Needs, Want
from sddit.losses import LossTerm


class MineParams(LossParams):
    scale: float = Field(1.0, gt=0, description="A factor.")

    def needs(self):
        return Needs(student=Want(output=True, taps=("encoder",)), teacher=Want(taps=("encoder",)))

    def cost(self, backbone, *_, **__):
        width = backbone.width("encoder")
        return Cost((width + 1) * width)

    @property
    def couples_samples(self):
        return False


class Mine(LossTerm):
    def __init__(self, params, *, widths, **_):
        super().__init__()
        self.scale = params.scale
        self.head = torch.nn.Linear(widths["encoder"], widths["encoder"])
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, ctx, views, outputs):
        view = views["student"]
        tokens = outputs["student"].taps["encoder"]
        teacher = outputs["teacher"].taps["encoder"]
        patch = tokens.patch
        target = teacher.at(tokens.index).detach()
        error = F.mse_loss(self.head(patch), target, reduction="none")
        loss = error.mean(dim=(1, 2)) + (outputs["student"].x0 - view.x0).square().mean(dim=(1, 2, 3))
        return self.scale * loss


@hookimpl
def register_losses(registry):
    registry.add("mine", Mine, params=MineParams, summary="Squared error.")
"""
TOKENS_ONLY = (
    '        loss = error.mean(dim=(1, 2)) + (outputs["student"].x0 - view.x0).square().mean(dim=(1, 2, 3))',
    "        loss = error.mean(dim=(1, 2))",
)
RETURN = "        return self.scale * loss"
COUPLED = ("        return False", "        return True")
NO_HEAD = [
    ("self.head(patch)", "patch"),
    ("Cost((width + 1) * width)", "Cost()"),
    ('        self.head = torch.nn.Linear(widths["encoder"], widths["encoder"])\n', ""),
]


@dataclass(frozen=True)
class Mistake:
    """Replacements in the source, and what both messages say of cause and fix."""

    name: str
    changes: list[tuple[str, str]]
    cause: str
    fix: str
    line: str = ""  # text of the line that `where:` names, in the changed source
    training: str = ""  # the cause, where the first step or the plan says it in other words


def returns(text: str) -> list[tuple[str, str]]:
    return [(RETURN, f"        {text}")]


MISTAKES = [
    Mistake("a mean over the batch", returns("return loss.mean()"), "has a wrong shape", "mean over every dimension"),
    Mistake("a column", returns("return loss[:, None]"), "has a wrong shape", "mean over every dimension"),
    Mistake(
        "detached tokens, no head",
        [TOKENS_ONLY, *NO_HEAD, ("patch = tokens.patch", "patch = tokens.patch.detach()")],
        "the loss has no gradient",
        "look for .detach()",
    ),
    Mistake(
        "detached tokens before a head of its own",
        [TOKENS_ONLY, ("patch = tokens.patch", "patch = tokens.patch.detach()")],
        "the loss has no gradient to the student's outputs",
        "look for .detach()",
    ),
    Mistake(
        "data of tokens before a head of its own",
        [TOKENS_ONLY, ("patch = tokens.patch", "patch = tokens.patch.data")],
        "the loss has no gradient to the student's outputs",
        "look for .detach(), .data",
    ),
    Mistake(
        "a gradient of zero",
        [(RETURN, "        return 0 * self.scale * loss")],
        "the loss has no gradient to the student's outputs",
        "look for",
    ),
    Mistake("a misspelt hook", [("def register_losses", "def register_loses")], "unknown hook", "did you mean"),
    Mistake(
        "params a plain class",
        [("(LossParams):", ":"), ("scale: float", "scale_: float")],
        "must be a subclass of sddit.interfaces.LossParams",
        "correct the line",
    ),
    Mistake(
        "params a dict",
        [("params=MineParams", 'params={"scale": 1.0}')],
        "must be a subclass of sddit.interfaces.LossParams",
        "correct the line",
    ),
    Mistake(
        "params a BaseModel",
        [("(LossParams):", "(BaseModel):")],
        "must be a subclass of sddit.interfaces.LossParams",
        "correct the line",
    ),
    Mistake(
        "no import of F",
        [("import torch.nn.functional as F\n", "")],
        "name 'F' is not defined",
        "add  import torch.nn.functional as F",
        "error = F.mse_loss",
    ),
    Mistake(
        "no import of Field",
        [("BaseModel, Field", "BaseModel")],
        "name 'Field' is not defined",
        "add  from pydantic import Field",
        "scale: float",
    ),
    Mistake(
        "a misspelt variable",
        returns("return self.scale * los"),
        "name 'los' is not defined",
        "import or define los",
        "return self.scale * los",
    ),
    Mistake(
        "a NaN",
        returns("return (loss - loss.max() - 1).log()"),
        "is not finite",
        "clamp what goes into log",
        "return (loss",
    ),
    Mistake(
        "an infinite slope",
        returns("return loss + (patch - patch.detach()).square().sum(dim=(1, 2)).sqrt()"),
        "the gradient of the loss is not finite",
        "infinite slope at 0",
    ),
    Mistake(
        "a tap not declared",
        [('taps=("encoder",)), teacher', "), teacher")],
        "KeyError: 'encoder'",
        "declare in needs()",
        'tokens = outputs["student"]',
    ),
    Mistake("an output not declared", [("output=True, ", "")], "NoneType", "declare in needs()", "loss = error"),
    Mistake(
        "a teacher not declared",
        [(', teacher=Want(taps=("encoder",))', "")],
        "KeyError: 'teacher'",
        "declare in needs()",
        'teacher = outputs["teacher"]',
    ),
    Mistake(
        "state in an attribute of the class",
        [
            ("class Mine(LossTerm):", "class Mine(LossTerm):\n    values = []\n"),
            (RETURN, "        Mine.values.append(float(loss.detach().mean()))\n        return loss + sum(self.values)"),
        ],
        "self.values: 1 items -> 2 items",
        "register_buffer",
    ),
    Mistake(
        "a device by name",
        returns('return loss + torch.zeros(len(loss), device="cuda")'),
        "raised an error",
        "name no device",
        "return loss + torch.zeros",
    ),
    Mistake(
        "a layer created in forward",
        [
            (
                "        patch = tokens.patch\n",
                "        patch = tokens.patch\n        self.late = torch.nn.Linear(patch.shape[2], patch.shape[2])\n"
                "        patch = self.late(patch)\n",
            )
        ],
        "forward created late.weight, late.bias",
        "create layers in __init__",
    ),
    Mistake(
        "forward without ctx",
        [("def forward(self, ctx, views, outputs)", "def forward(self, views, outputs)")],
        "forward() takes 3 positional arguments",
        "def forward(self, ctx, views, outputs)",
    ),
    Mistake(
        "cost without the view",
        [("def cost(self, backbone, *_, **__)", "def cost(self, backbone)")],
        "takes 2 positional arguments",
        "def cost(self, backbone, shapes, view, num_kept)",
    ),
    Mistake(
        "another name for the argument of a hook",
        [("def register_losses(registry)", "def register_losses(reg)"), ("registry.add", "reg.add")],
        "'reg'",
        "def register_losses(registry)",
    ),
    Mistake(
        "gradients switched off for good",
        [("        patch = tokens.patch\n", "        patch = tokens.patch\n        torch.set_grad_enabled(False)\n")],
        "it switched gradients off or on for everything else",
        "with torch.no_grad():",
    ),
    Mistake(
        "layers in a list",
        [
            (
                'self.head = torch.nn.Linear(widths["encoder"], widths["encoder"])',
                'self.heads = [torch.nn.Linear(widths["encoder"], widths["encoder"])]',
            ),
            ("self.head(patch)", "self.heads[0](patch)"),
        ],
        "layers in a list or dict of Python: heads",
        "nn.ModuleList",
    ),
    Mistake(
        "registered twice",
        [
            (
                "def register_losses(registry):",
                "def register_losses(registry):\n    "
                'registry.add("mine", Mine, params=MineParams, summary="Squared error.")',
            )
        ],
        "loss 'mine' is registered twice",
        "give one of them another name",
    ),
    Mistake(
        "a misspelt field of Want",
        [("Want(output=True", "Want(outputs=True")],
        "'outputs'",
        "Want takes output, taps, cls and heads",
    ),
    Mistake(
        "a misspelt import",
        [("from sddit import hookimpl", "from sddit import hookimp as hookimpl")],
        "cannot import name 'hookimp'",
        "from sddit import hookimpl",
    ),
    Mistake(
        "a shape as the purpose of draws",
        returns("return loss + ctx.draws.normal(loss.shape)"),
        "the first argument is a purpose",
        "correct the line above",
        "return loss",
    ),
    Mistake(
        "a default outside of its bounds",
        [("scale: float = Field(1.0, gt=0", "scale: float = Field(-1.0, gt=0")],
        "have a default that they refuse: scale = -1.0",
        "correct the line above",
        "registry.add",
    ),
    Mistake(
        "a misspelt attribute of ctx",
        returns("return self.scale * loss * ctx.shedule.sigma(view.t)"),
        "no attribute 'shedule'",
        "did you mean .schedule?",
        "return self.scale",
    ),
    Mistake(
        "an attribute that outputs do not have",
        [('outputs["student"].taps["encoder"]', 'outputs["student"].quux["encoder"]')],
        "no attribute 'quux'",
        "Outputs has raw, x0, extra, heads, taps",
        "tokens = ",
    ),
    Mistake(
        "a misspelt setting",
        [("self.scale = params.scale", "self.scale = params.scael")],
        "no attribute 'scael'",
        "did you mean .scale?",
        "self.scale = ",
    ),
    Mistake(
        "tokens transposed",
        [("self.head(patch)", "self.head(patch.mT)")],
        "shapes cannot be multiplied",
        "a layer multiplies the last dimension",
        "error = F.mse_loss",
    ),
    Mistake(
        "the width of a tap not declared",
        [('taps=("encoder",)), teacher=Want(taps=("encoder",))', ")")],
        "KeyError: 'encoder'",
        "declare in needs() what forward reads: taps=(...)",
        "self.head = torch.nn.Linear",
    ),
    Mistake(
        "a tap that does not exist",
        [('taps=("encoder",)), teacher', 'taps=("encoder", "end")), teacher')],
        "",
        "",
        training="has no tap 'end'",
    ),
    Mistake(
        "a tuple without its comma",
        [('taps=("encoder",)), teacher', 'taps=("encoder")), teacher')],
        "taps is a text",
        "taps=('encoder',)",
    ),
    Mistake(
        "a list of taps",
        [('taps=("encoder",)), teacher', 'taps=["encoder"]), teacher')],
        "taps is ['encoder'], not a tuple",
        "fix:",
    ),
    Mistake(
        "a buffer changed in forward",
        [(RETURN, f"        self.seen += 1\n{RETURN}")],
        "a buffer changed in forward: seen",
        "change buffers in after_step",
    ),
    Mistake(
        "a weight changed in forward",
        [(RETURN, f"        self.head.weight.data.mul_(0.9)\n{RETURN}")],
        "a weight changed in forward: head.weight",
        "after_step",
    ),
    Mistake(
        "state in a plain attribute",
        [(RETURN, "        self.calls += 1\n        return self.calls * loss")],
        "another value for the same input",
        "register_buffer",
    ),
    Mistake(
        "torch.randn",
        returns("return loss + torch.randn(())"),
        "took numbers from torch's global generator",
        "ctx.draws.normal(",
    ),
    Mistake(
        "Python's random",
        [("import torch\n", "import torch, random\n"), *returns("return loss * random.random()")],
        "took numbers from Python's global generator",
        "ctx.draws.normal(",
    ),
    Mistake(
        "NumPy's random",
        [("import torch\n", "import torch\nimport numpy as np\n"), *returns("return loss * float(np.random.rand())")],
        "took numbers from NumPy's global generator",
        "ctx.draws.normal(",
    ),
    Mistake(
        "a view changed",
        [(RETURN, f"        view.x0.mul_(0.5)\n{RETURN}")],
        "forward changed what it was given: student.x0",
        "work on a copy",
    ),
    Mistake(
        "an estimate changed",
        [(RETURN, f"        outputs['student'].x0.data.clamp_(-0.1, 0.1)\n{RETURN}")],
        "forward changed what it was given: the outputs' student.x0",
        "work on a copy",
    ),
    Mistake(
        "a cost of 0",
        [("Cost((width + 1) * width)", "Cost()")],
        "cost() states another number of parameters",
        "Cost(parameters=",
    ),
    Mistake(
        "no super().__init__()",
        [
            ("        super().__init__()\n", ""),
            *NO_HEAD,
            ('        self.register_buffer("seen", torch.zeros(()))\n', ""),
        ],
        "does not initialize its base class",
        "call super().__init__()",
        "def __init__(self, params",
    ),
    Mistake(
        "super().__init__() after a layer",
        [("        super().__init__()\n", ""), ("        self.calls = 0\n", "        super().__init__()\n")],
        "before Module.__init__() call",
        "call super().__init__()",
        "self.head = torch",
    ),
    Mistake(
        "in place on tokens",
        [("patch = tokens.patch", "patch = tokens.patch.mul_(2)")],
        "in-place operation",
        "write x = x * 2",
        "patch = tokens.patch.mul_(2)",
    ),
    Mistake(
        "in place on an activation",
        [
            (
                "error = F",
                "hidden = self.head(patch).sigmoid()\n        kept = hidden.square()\n        hidden += 1\n"
                "        error = F",
            ),
            (RETURN, "        return loss + (hidden.exp() * kept).sum(dim=(1, 2))"),
        ],
        "modified by an inplace operation",
        "write x = x * 2",
    ),
    Mistake(
        "__init__ without **_", [("widths, **_", "widths")], "unexpected keyword argument", "end the signature with **_"
    ),
    Mistake(
        "no tokens.index with a mask",
        [("teacher.at(tokens.index)", "teacher.patch")],
        "must match",
        "take the targets at these positions",
        "error = F.mse_loss",
    ),
    Mistake(
        "needs() returns None",
        [("        return Needs", "        Needs")],
        "NoneType",
        "fix:",
        training="it returned NoneType, not Needs\n  fix:    let it return a Needs on every path",
    ),
    Mistake(
        "a Want without Needs",
        [
            (
                'return Needs(student=Want(output=True, taps=("encoder",)), teacher=Want(taps=("encoder",)))',
                "return Needs(student=True)",
            )
        ],
        "is not made of Want",
        "fix:",
    ),
    Mistake(
        "a property as an attribute",
        [("    @property\n    def couples_samples(self):\n        return False\n", "    couples_samples = False\n")],
        "A non-annotated attribute",
        "couples_samples: ClassVar[bool]",
    ),
    Mistake("returns None", returns("self.scale * loss"), "forward did not return a tensor", "return loss"),
    Mistake(
        "returns a float",
        returns("return float(loss.mean())"),
        "forward did not return a tensor",
        "without float() or .item()",
    ),
    Mistake("returns integers", returns("return loss.argsort()"), "returns integers", "fix:"),
    Mistake("returns complex numbers", returns("return loss + 0j"), "returns complex numbers", "return a float"),
    Mistake(
        "calls backward",
        returns("loss.sum().backward(retain_graph=True)\n        return loss"),
        "forward adds to the gradients of the network itself",
        "without backward()",
    ),
    Mistake(
        "changes the default dtype",
        returns("torch.set_default_dtype(torch.float64)\n        return loss"),
        "it changed torch's default dtype for everything else",
        "restore it before it returns",
    ),
    Mistake("no @hookimpl", [("@hookimpl\n", "")], "lacks the @hookimpl decorator", "correct the line"),
    Mistake(
        "nothing registered",
        [("    registry.add(", "    return; registry.add(")],
        "it registers nothing",
        "correct the line",
    ),
    Mistake(
        "a syntax error",
        [("def forward(self, ctx, views, outputs):", "def forward(self, ctx, views, outputs)")],
        "SyntaxError",
        "correct the line",
        "def forward",
    ),
    Mistake(
        "a key without a description",
        [(', description="A factor."', "")],
        "lack a description: scale; set it with Field(",
        "correct the line",
    ),
    Mistake(
        "samples mixed",
        returns("return self.scale * loss / loss.detach().mean()"),
        "the value of one sample depends on other samples",
        "declare couples_samples",
    ),
    Mistake(
        "a batch norm",
        [("self.head(patch)", "F.batch_norm(self.head(patch).flatten(1), None, None, training=True).view_as(patch)")],
        "the value of one sample depends on other samples",
        "declare couples_samples",
    ),
    Mistake(
        "a method that should be a property",
        [("    @property\n", "")],
        "",
        "",
        training="it returned method, not bool\n  fix:    make it a property, with @property above def couples_samples",
    ),
]
KIT_ONLY = [
    Mistake(
        "a batch-coupled loss without ctx.gather",
        [
            COUPLED,
            (
                RETURN,
                "        z = F.normalize(patch.mean(dim=1), dim=1)\n"
                "        return loss.mean() + (z @ z.T).exp().mean().log()",
            ),
        ],
        "the loss depends on the number of processes",
        "z = ctx.gather(z)",
    ),
    Mistake(
        "a float32 inside",
        returns("return self.scale * loss.float()"),
        "float64 outputs give another dtype",
        "torch.promote_types",
    ),
]
"""What a run of one process in float32 does not show."""


def source_of(mistake: Mistake) -> str:
    text = SOURCE
    for old, new in mistake.changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = '[loss.own]\nname = "mine"\nweight = {start = 0.0, end = 1.0, shape = "linear"}\n'
    Path("toy.toml").write_text(f'plugins = ["./mine.py"]\n{TOY_PAIR_RECIPE}\n{table}[evaluate]\npreviews = 0\n')


def said_of(mistake: Mistake, command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error of a command with a mistake in the plugin, after its form is checked."""
    Path("mine.py").write_text(source_of(mistake), encoding="utf-8")
    with using_host(toy_host()):
        status = call(command.split())
    said = capsys.readouterr().err
    assert "bug in the toolkit" not in said and "Traceback" not in said, said
    assert status == 3 or (status == 2 and command == "toy.toml"), said
    assert re.search(r"^error SD-P2\d\d|^error SD-R", said, re.MULTILINE), said
    return said


def names_the_line(mistake: Mistake, said: str) -> None:
    if mistake.line:
        lines = source_of(mistake).splitlines()
        number = next(n for n, text in enumerate(lines, 1) if text.strip().startswith(mistake.line))
        assert f"mine.py:{number}\n" in said, said


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, before its error
@pytest.mark.parametrize("mistake", [*MISTAKES, *KIT_ONLY], ids=lambda m: m.name)
def test_the_kit_names_cause_and_fix(mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    if not mistake.cause:
        pytest.skip("found by the plan")
    said = said_of(mistake, "check mine.py", capsys)
    assert mistake.cause in said, said
    assert mistake.fix in said, said
    names_the_line(mistake, said)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_the_first_step_names_cause_and_fix(mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    """The weight of the loss starts at 0, and rises."""
    said = said_of(mistake, "toy.toml", capsys)
    assert (mistake.training or mistake.cause) in said, said
    assert mistake.training or mistake.fix in said, said
    names_the_line(mistake, said)
    for folder in Path("runs").glob("*"):
        assert not list(folder.glob("checkpoints/step-*"))


def test_the_plugin_without_a_mistake_passes_and_trains(capsys: pytest.CaptureFixture[str]) -> None:
    """The negative control: only the changes are at fault."""
    Path("mine.py").write_text(SOURCE, encoding="utf-8")
    for command in ("check mine.py", "toy.toml"):
        with using_host(toy_host()):
            assert call(command.split()) == 0, capsys.readouterr().err


def test_a_gradient_that_is_not_finite_is_not_blamed_on_the_processes(capsys: pytest.CaptureFixture[str]) -> None:
    (mistake,) = [one for one in MISTAKES if one.cause == "the gradient of the loss is not finite"]
    said = said_of(mistake, "check mine.py", capsys)
    assert said.count("error SD-P220") == 1
    assert "number of processes" not in said
