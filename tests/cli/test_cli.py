"""The command line: what it prints reads well at 80 columns, and a mistake is one sentence and an exit code."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.metadata import version

import pytest

from prunebench.bench.checkpoint import Header, seal
from prunebench.bench.cli import options, show
from prunebench.bench.datasets import DATASETS
from prunebench.bench.facts import StageCost
from prunebench.bench.job import Job
from prunebench.bench.mask import keep_largest, masked
from prunebench.bench.models import ARCHITECTURES, build, prunable
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.record import load_record
from tests.support.claims import copied, make_claim, overstated
from tests.support.nets import SMALL
from tests.support.records import make, save

VERBS = (
    "run",
    "plan",
    "train",
    "score",
    "import",
    "inspect",
    "rank",
    "sign",
    "site",
    "compare",
    "claim",
    "verify",
    "new",
    "check",
    "list",
    "doctor",
)


@pytest.fixture(autouse=True)
def _one_thread_and_no_network(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("PRUNEBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def net(tmp_path):
    """A net for the digits with 90 % of its weights pruned."""
    module = build("digits-cnn")
    state = module.state_dict()
    masks = keep_largest({name: weight.detach().abs() for name, weight in prunable(module).items()}, 3816)
    header = Header(
        arch="digits-cnn",
        classes=10,
        shape=(1, 8, 8),
        protocol=PROTOCOLS["digits-linf"],
        source=None,
        train_sha256=None,
        job=Job(pruner="imp", options={"rounds": 2}, sparsity=0.9, seed=3),
        stages=(StageCost(name="search", passes=1_234_567, seconds=None),),
    )
    seal(tmp_path / "net.safetensors", masked(state, masks), header, passes_granted=2_000_000)
    return tmp_path / "net.safetensors"


def widest(text):
    return max(map(len, text.splitlines()))


# What reads well


def test_the_verbs_are_all_listed_and_each_fits_on_its_line(prunebench):
    code, out, _ = prunebench("--help")
    assert code == 0
    assert re.findall(r"^  (\w+)  ", out.partition("Commands:")[2], flags=re.MULTILINE) == list(VERBS)
    assert widest(out) <= 80
    assert "..." not in out.partition("Commands:")[2]  # no summary is cut off


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(prunebench, verb):
    code, out, err = prunebench(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: prunebench {verb} ")
    assert widest(out) <= 80
    assert "  -h, --help" in out and f"    prunebench {verb} " in out.partition("Example")[2]


def test_no_verb_is_a_question_for_help(prunebench):
    code, out, err = prunebench()
    assert code == 2  # nothing was asked for, so nothing holds
    assert "Usage: prunebench" in out + err


def test_list_at_80_columns(prunebench):
    code, out, _ = prunebench("list")
    assert code == 0
    assert widest(out) <= 80
    for name in (*PROTOCOLS, *ARCHITECTURES, *DATASETS, "folder:PATH", "dense", "random", "magnitude", "imp"):
        assert re.search(rf"^{re.escape(name)}\b", out, flags=re.MULTILINE), name


@pytest.mark.parametrize("kind", ["protocols", "pruners", "models", "datasets"])
def test_list_one_kind_and_as_json(prunebench, kind):
    code, out, _ = prunebench("list", kind)
    assert (code, out.split()[0]) == (0, kind.upper())
    everything, one = json.loads(prunebench("list", "--json")[1]), json.loads(prunebench("list", kind, "--json")[1])
    assert one == {kind: everything[kind]}
    assert list(everything) == ["protocols", "pruners", "models", "datasets"]
    assert all(name in out for name in one[kind])


def test_list_says_what_a_protocol_is(prunebench):
    listing = json.loads(prunebench("list", "protocols", "--json")[1])["protocols"]
    assert listing["cifar10-linf"] == (
        "resnet18 on cifar10, Linf 8/255, sparsities 0.9 0.95 0.99, 2 units of 30 epochs"
    )


def test_doctor(prunebench, tmp_path):
    code, out, _ = prunebench("doctor", "--data", "elsewhere")
    assert code == 0
    assert widest(out) <= 80
    facts = json.loads(prunebench("doctor", "--json", "--data", "elsewhere")[1])
    assert facts.keys() > {"torchvision", "pyautoattack", "python", "cpu", "threads", "device", "cores", "compiler"}
    assert "floats wide" in facts["sparse kernels"]
    assert facts["torch"] == version("torch")
    assert facts["data: digits"] == "here"
    assert facts["data: mnist"] == "not in elsewhere"
    raw = tmp_path / "here" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").touch()
    assert json.loads(prunebench("doctor", "--json", "--data", "here")[1])["data: mnist"] == "here"


def test_inspect(prunebench, net):
    code, out, _ = prunebench("inspect", net.name)
    assert code == 0
    assert widest(out) <= 80
    for fact in (
        "imp:rounds=2, requested sparsity 0.9, seed 3",
        "3816 of 38160 kept, sparsity 0.900000",
        "digits-linf v1",
        "search",
        "1,234,567 sample passes",
        "digits-cnn, 10 classes",
    ):
        assert fact in re.sub(r"\s+", " ", out)
    facts = json.loads(prunebench("inspect", net, "--json")[1])
    assert (facts["net"]["prunable"], facts["net"]["nonzero"], facts["sparsity"]) == (38160, 3816, 0.9)
    assert sum(layer["nonzero"] for layer in facts["net"]["layers"]) == 3816
    assert facts["header"]["job"] == {"pruner": "imp", "options": {"rounds": 2}, "sparsity": 0.9, "seed": 3}
    for layer in facts["net"]["layers"]:
        assert re.search(rf"{re.escape(layer['name'])} +{'x'.join(map(str, layer['shape']))} +{layer['nonzero']} ", out)


# The whole way, small


def test_train_writes_a_net_that_inspect_reads_and_does_not_train_it_twice(prunebench, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    train = ("train", "small.toml", "--pruner", "random", "--sparsity", "0.90", "--out", "here", "--quiet")
    code, out, err = prunebench(*train)
    assert code == 0 and all("Stage 'train' ended near chance" in line for line in err.splitlines())
    assert "3816 of 38160 kept" in out and "made for" in out
    path = tmp_path / "here" / "net.safetensors"
    first, written = path.read_bytes(), path.stat().st_mtime_ns
    assert prunebench(*train)[0] == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (first, written)
    facts = json.loads(prunebench("inspect", path, "--json")[1])
    assert facts["header"]["protocol"]["name"] == "small"
    assert facts["header"]["job"]["sparsity"] == 0.9


def test_why_nets_run_dense_is_said_once(prunebench, nets, quick, monkeypatch, tmp_path):
    why = "there is no C++ compiler; install one."
    (tmp_path / "small.toml").write_text(SMALL)
    score = ("score", nets["imp"], "--parent", nets["dense"], "--examples", "8", "--out", "here")
    monkeypatch.setattr("prunebench.bench.grid.run.run", lambda *_, **__: [])
    for lacks in (None, why):
        monkeypatch.setattr("prunebench.bench.executor.lacking", lambda lacks=lacks: lacks)
        code, _, err = prunebench(*score)
        assert (code, err.count(f"The net runs dense: {why}")) == (0, int(lacks is not None))
        assert prunebench(*score, "--quiet")[2] == ""
        code, _, err = prunebench("run", "small.toml", "--device", "cpu")
        assert (code, err.count(f"All nets run dense: {why}")) == (0, int(lacks is not None))


# Claims and comparisons


@pytest.fixture(scope="module")
def honest(nets, tmp_path_factory):
    return make_claim(nets["dense"], tmp_path_factory.mktemp("claims"))


def test_a_claim_from_a_record_to_its_verdicts(prunebench, honest, tmp_path):
    scored = honest.parent.parent / "scored" / "record.json"
    code, out, err = prunebench("claim", scored, "--out", "mine")
    assert (code, out, err) == (0, "Written: mine/CLAIM.toml\n", "")  # no warning: it can be replayed
    assert (tmp_path / "mine" / "CLAIM.toml").read_bytes() == honest.read_bytes()
    for file in ("record.json", "record.outcomes.npz", "record.proposals.npz", "net.safetensors"):
        published = file.replace("record", "of-a-board") if file[0] == "r" else "of-a-board.net.safetensors"
        (tmp_path / published).write_bytes((scored.with_name(file)).read_bytes())
    assert prunebench("claim", "of-a-board.json", "--out", "again")[0] == 0
    assert (tmp_path / "again" / "CLAIM.toml").read_bytes() == honest.read_bytes()
    shutil.rmtree(tmp_path / "again")
    code, out, err = prunebench("verify", "mine", "--quiet")
    assert (
        (code, err) == (0, "")
        and out.startswith("mine/CLAIM.toml: reproduced: ")
        and "survive the stored adversarial images" in out
    )
    (found,) = json.loads(prunebench("verify", "mine/CLAIM.toml", "--quiet", "--json")[1])
    assert (found["claim"], found["level"], found["word"], found["images"]) == (
        "mine/CLAIM.toml",
        "replay",
        "reproduced",
        [],
    )

    overstated(copied(honest, tmp_path / "over"), 5)
    code, out, err = prunebench("verify", "over", "--quiet")
    assert (code, err) == (1, "") and "not reproduced: Of 400 images 20 were claimed robust but are wrong here: " in out

    refused = mistake(prunebench, "claim", scored, "--out", "mine", "--at-least", "10 %")
    assert "mine holds another claim or another net (CLAIM.toml)" in refused and "--force" in refused
    assert prunebench("claim", scored, "--out", "mine", "--at-least", "10%", "--force")[0] == 0
    code, out, err = prunebench("verify", "mine", "--quiet")
    assert (code, err) == (0, "") and out.endswith("At least 10 % of 400 images are 40.\n")

    (tmp_path / "mine" / "net.safetensors").write_bytes(b"another")
    assert "names a net with the sha256 " in mistake(prunebench, "verify", "mine", "--quiet")
    copied(honest, tmp_path / "good \x1b[31m")
    code, out, err = prunebench("verify", ".", "--quiet")  # one stands, one does not, one is refused
    lines = out.splitlines()
    assert (code, err) == (1, "") and len(lines) == 3 and "\x1b" not in out
    assert [line.split(": ")[1] for line in lines] == ["reproduced", "refused", "not reproduced"]
    shutil.rmtree(tmp_path / "mine")
    shutil.rmtree(tmp_path / "over")
    assert prunebench("verify", ".", "--quiet")[0] == 0


def test_a_claim_without_adversarials_says_how_to_get_them(prunebench, scored):
    code, out, err = prunebench("claim", scored["imp"] / "record.json", "--out", "mine")
    assert (code, out) == (0, "Written: mine/CLAIM.toml\n")
    assert err.startswith("prunebench: warning: The claim cannot be replayed") and "--keep-proposals" in err


def test_what_cannot_be_claimed_or_verified(prunebench, honest, tmp_path):
    scored = honest.parent.parent / "scored" / "record.json"
    assert "is a JSON file, not a net" in mistake(prunebench, "claim", scored, "--net", scored, "--out", "mine")
    (tmp_path / "other").write_text("{}")
    assert "is not the net of" in mistake(prunebench, "claim", scored, "--net", "other", "--out", "mine")
    assert "Cannot read none.json" in mistake(prunebench, "claim", "none.json", "--out", "mine")
    assert not (tmp_path / "mine").exists()
    assert "There is no claim in none" in mistake(prunebench, "verify", "none")
    (tmp_path / "CLAIM.toml").write_text("n = 1\nn = 2\n")
    assert "not valid TOML" in mistake(prunebench, "verify", "CLAIM.toml")


def test_compare_says_whether_two_nets_differ(prunebench, tmp_path):
    save(tmp_path, make(robust=50), "a"), save(tmp_path, make(seed=1, robust=40), "b")
    a, b = "digits-linf/a.json", "digits-linf/b.json"
    code, out, _ = prunebench("compare", a, b)
    assert code == 0
    assert "Robust accuracy of A is higher: 50 against 40 of 100 images, 10 correct only for A" in out
    assert "Clean accuracy of A and B cannot be told apart" in out
    robust, clean = json.loads(prunebench("compare", b, a, "--json")[1])
    assert (robust["a"], robust["only_b"], robust["p"], robust["significant"]) == (40, 10, 2 / 2**10, True)
    assert (clean["p"], clean["significant"]) == (1.0, False)
    save(tmp_path, make(seed=2, n=90), "c")
    assert "different numbers of images, 100 and 90" in mistake(prunebench, "compare", a, "digits-linf/c.json")


# Bad input


def test_a_score_tells_of_attacks_that_were_not_exact():
    tf32 = show.score_table(make(schema=8, attack_arithmetic={"name": "tf32", "repaired": 3}))
    said = "Attacks in tf32, verdicts in float32; 3 times an image was attacked again in float32."
    assert said in tf32
    assert not any("Attacks in" in part for part in show.score_table(make()) if isinstance(part, str))


def mistake(prunebench, *arguments):
    """What a mistake of the user says: exit code 1, nothing but one sentence, no traceback."""
    code, out, err = prunebench(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("prunebench: ") and err.count("\n") == 1 and err.rstrip()[-1] in ".)"
    assert "Traceback" not in err
    return err


def training(*changes, protocol="digits-linf", pruner="imp", sparsity="0.9"):
    return ("train", protocol, "--pruner", pruner, "--sparsity", sparsity, "--out", "out", *changes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (training(protocol="digit-linf"), "Unknown protocol 'digit-linf'; did you mean 'digits-linf'? Choose"),
        (training(protocol="none.toml"), "Cannot read none.toml, a protocol of prunebench (No such file or directory)"),
        (training(pruner="magnitud"), "Unknown pruner 'magnitud'; did you mean 'magnitude'? Choose from: awt, dense, "),
        (
            training(pruner="imp:round=3"),
            "Unknown option of imp 'round'; did you mean 'rounds'? Choose from: least, rewind",
        ),
        (training(pruner="imp:rounds=many"), "'many' of imp is not of type int"),
        (training(pruner="imp:rounds=0"), "rounds = 0 must be at least 1"),
        *(
            (training(sparsity=sparsity), f"Sparsity {sparsity} is not in [0, 1)")
            for sparsity in ("1", "1.0", "1.5", "-0.1", "nan", "inf", "90%", "")
        ),
        (training(sparsity="0.99999999999999999999"), "Sparsity 1.0 is not in [0, 1)"),
        (training("--device", "gpu"), "Unknown device 'gpu'; choose auto, cpu, cuda or cuda:N."),
        (training("--device", "meta"), "Unknown device 'meta'"),
        (training("--device", "cuda:99"), "Device 'cuda:99' is missing"),
        (training(protocol="mnist-linf"), "Data set mnist is not in data (MNIST/raw/train-images-idx3-ubyte is m"),
        (training("--data", "there", protocol="cifar10-linf"), "Data set cifar10 is not in there"),
        (("run", "digits-lin"), "did you mean 'digits-linf'?"),
        (("run", "digits-linf", "--sparsity", "1"), "Sparsity 1 is not in [0, 1)"),
        (("run", "digits-linf", "--pruner", "impp"), "Unknown pruner 'impp'; did you mean 'imp'?"),
        (("run", "digits-linf", "--examples", "501"), "digits has 500 test images, fewer than the 501"),
        (("run", "digits-linf", "--device", "tpu"), "Unknown device 'tpu'"),
        (("run", "mnist-linf"), "Data set mnist is not in data"),
        (("run", "digits-linf", "--device", "cpu", "--arithmetic", "tf32"), "Attacks in tf32 need a CUDA card"),
        (("plan", "digits-linf", "--device", "cpu", "--arithmetic", "tf32"), "Attacks in tf32 need a CUDA card"),
        (
            ("score", "x.safetensors", "--out", "x", "--device", "cpu", "--arithmetic", "tf32"),
            "Attacks in tf32 need a CUDA card",
        ),
        (("score", "x.safetensors", "--out", "x", "--arithmetic", "bf16"), "Unknown arithmetic 'bf16'"),
        (("inspect", "none.safetensors"), "Cannot read none.safetensors, a net file of prunebench"),
        (("score", "none.safetensors"), "There is no file none.safetensors"),
        (("rank", "none"), "none"),
        (("site", "none", "--out", "site"), "There is no folder none"),
        (("new", "../mine"), "'../mine' cannot name a file and a class"),
        (("new", "imp"), "A pruner 'imp' already exists"),
        (("check", "impp"), "Unknown pruner 'impp'; did you mean 'imp'?"),
        (("import", "none.pt", "--arch", "digits-cnn", "--protocol", "digits-linf", "--out", "o"), "read none.pt, a"),
        (("import", "x.pt", "--arch", "digitscnn", "--protocol", "digits-linf", "--out", "o"), "'digits-cnn'?"),
        (("import", "x.pt", "--arch", "resnet18", "--protocol", "cifar10", "--out", "o"), "'cifar10-linf' or "),
    ],
)
def test_mistakes(prunebench, tmp_path, arguments, said):
    before = set(tmp_path.rglob("*.safetensors"))
    assert said in mistake(prunebench, *arguments)
    assert set(tmp_path.rglob("*.safetensors")) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL + "epohcs = 3", "The protocol small.toml breaks the rules: unknown key 'training.epohcs'"),
        (SMALL + '[threat]\neps = "8/0"', "'8/0' divides by zero"),
        (SMALL + "epochs = ", "is not valid TOML"),
        (
            'model = "digits-cmn"\n' + SMALL,
            "Unknown model 'digits-cmn'; did you mean 'digits-cnn'? Choose from",
        ),
        ('model = "mnist-cnn"\n' + SMALL, "Model mnist-cnn needs images of at least 16x16 pixels, not 8x8"),
        ('data = "digts"\n' + SMALL, "Unknown data set 'digts'; did you mean 'digits'? Choose from: cifar10"),
        ('data = "folder:none"\n' + SMALL, "folder:PATH needs train/CLASS/"),
        (
            SMALL.replace("train = 64", "train = 6400"),
            "has 1297 images to train on, fewer than the 10 for",
        ),
        (SMALL.replace('"small"', '"digits-linf"'), "give it another name"),
    ],
)
def test_mistakes_in_a_protocol(prunebench, tmp_path, text, said):
    (tmp_path / "small.toml").write_text(text)
    assert said in mistake(prunebench, *training("--quiet", protocol="small.toml", pruner="random"))
    assert not list(tmp_path.rglob("net.safetensors"))


@pytest.mark.parametrize("verb", ["inspect", "score"])
def test_files_that_are_no_nets(prunebench, net, verb):
    sound = net.read_bytes()
    middle = len(sound) // 2
    flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    for data, said in (
        (sound[:-1], "not a whole safetensors file"),
        (flipped, "altered"),
        (pickle.dumps({"a": 1}), "is a pickle or a zip archive, which is never read"),
        (b"PK\x03\x04" + bytes(100), "is a pickle or a zip archive, which is never read"),
        (b"", "not a whole safetensors file"),
    ):
        net.write_bytes(data)
        assert said in mistake(prunebench, verb, net.name)
    net.write_bytes(sound)
    assert prunebench("inspect", net.name)[0] == 0  # the twin


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "No such command 'trian'"),
        (("list", "modells"), "is not one of 'protocols', 'pruners', 'models', 'datasets'"),
        (("inspect",), "Missing argument"),
        (("train", "digits-linf"), "Missing option '--pruner'"),
        (training("--colour", "red"), "No such option"),
        (training("--seed", "-1"), "--seed"),
        (training("--seed", "one"), "--seed"),
        (training("--epochs", "0"), "--epochs"),
        (training("--threads", "0"), "--threads"),
        (("run", "digits-linf", "--jobs", "0"), "--jobs"),
        (("score", "net.safetensors", "--examples", "0"), "--examples"),
        (("run", "digits-linf", "--pruner", "imp", "magnitude"), "(magnitude); write several values with commas"),
        (("run", "digits-linf", "a\nb"), "(a\\"),
    ],
)
def test_a_command_that_cannot_be_parsed_ends_in_2_with_one_line_that_names_its_help(prunebench, arguments, said):
    code, out, err = prunebench(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("prunebench: ") and said in err
    assert re.search(r"[;?] see prunebench( [a-z]+)? -h\.$", err, flags=re.IGNORECASE | re.MULTILINE)


def test_site_takes_the_folder_of_a_run(prunebench, tmp_path):
    save(tmp_path / "runs" / "records", make())
    code, out, _ = prunebench("site", "runs", "--out", "web")
    assert (code, out) == (0, "Written, 1 board and 1 row: web/index.html\n")
    assert (tmp_path / "web" / "index.html").is_file()


def test_rank_refuses_an_unknown_format(prunebench, tmp_path):
    (tmp_path / "records").mkdir()
    assert "doc" in mistake(prunebench, "rank", "records", "--format", "doc")


def test_a_score_is_not_written_over_that_of_another_net(prunebench, nets, quick, tmp_path):
    """The attack: another net scored into the folder of the first takes the place of its record without a word."""
    score = ("--examples", "8", "--out", "here", "--quiet")
    assert prunebench("score", nets["imp"], *score, "--keep-proposals")[0] == 0
    first = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert {path.name for path in first} >= {"record.json", "record.outcomes.npz", "record.proposals.npz"}
    said = mistake(prunebench, "score", nets["dense"], *score)
    assert "here/record.json already holds the record of another net" in said and "--force" in said
    assert {path: path.read_bytes() for path in first} == first
    entries = {path: path.stat().st_mtime_ns for path in first if path.parent.name == "journal"}
    assert prunebench("score", nets["imp"], *score, "--keep-proposals")[0] == 0  # the same net: its journal is used
    assert {path: path.stat().st_mtime_ns for path in entries if path.name != "net"}.items() <= entries.items()
    (tmp_path / "here" / "refusal.json").write_text("{}")
    (tmp_path / "here" / "journal" / "shard-08192-08448-square.json").write_text("{}")
    assert prunebench("score", nets["dense"], *score, "--force")[0] == 0
    there = {path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*")}
    assert {"record.json", "record.outcomes.npz", "record.pairs.npz"} <= there
    assert not there & {"record.proposals.npz", "refusal.json", "journal/shard-08192-08448-square.json"}
    assert load_record(tmp_path / "here" / "record.json").job.pruner == "dense"


def test_rank_writes_the_log_and_signs_on_request(prunebench, tmp_path):
    record = save(tmp_path / "runs" / "records", make())
    assert prunebench("rank", "runs")[1].rstrip().endswith("Nothing was written (--write).")
    code, out, _ = prunebench("rank", "runs", "--write", "--reason", "New.", "--date", "2026-01-31")
    assert code == 0 and "runs/LOG.md" in " ".join(out.split())
    assert "| 2026-01-31 | digits-linf | imp | 0.9 | none |" in (tmp_path / "runs" / "LOG.md").read_text()
    assert prunebench("rank", "runs", "--check")[1].rstrip().splitlines()[-1].startswith("Up to date")
    assert "has no effect without --write" in mistake(prunebench, "rank", "runs", "--reason", "New.")
    assert "cannot sign with none" in mistake(prunebench, "sign", record, "--key", "none")


def test_epochs_of_another_number_make_another_protocol():
    official = options.rules_of("digits-linf", None)
    assert official.official
    assert options.rules_of("digits-linf", official.training.epochs) == official
    shorter = options.rules_of("digits-linf", 2)
    assert (shorter.name, shorter.official, shorter.training.epochs) == ("digits-linf-epochs2", False, 2)


# The command itself


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from prunebench.bench.cli.main import app\n"
        "app(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code, "run", "--help"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.split()[-1]) == (0, "False"), ended.stderr
