"""What an author is given: the skeleton of a study, which needs nothing else, and a scale with several seeds."""

import shutil

import pytest
import yaml

from bitdistiller.analysis.study import load_study, run_study
from bitdistiller.authoring import new_study, with_seeds, write_seeds
from bitdistiller.config import load_params
from bitdistiller.errors import UserError
from tests.synthetic import PERPLEXITY, ROOT, bit_scaling_runs, make_params


@pytest.fixture
def root(tmp_path):
    """A repository with the skeleton and nothing else."""
    folder = tmp_path / "root"
    (folder / "studies").mkdir(parents=True)
    (folder / "reports" / "published").mkdir(parents=True)
    shutil.copy(ROOT / "studies" / "_skeleton.py", folder / "studies")
    return folder


def test_the_skeleton_is_a_study_that_needs_its_part_of_the_parameters_and_nothing_else(root, tmp_path):
    path, section = new_study("mine", root / "studies")
    printed = yaml.safe_load(section)["studies"]["mine"]
    runs = bit_scaling_runs(tmp_path / "results", questions=40, seeds=1)
    filled = printed | {"perplexity": PERPLEXITY, "full": runs["full"]}
    filled["runs"] = {"treatment": runs["bits"][3], "control": runs["bits"][1]}
    params = make_params(runs, root=root).model_copy(update={"studies": {"mine": filled}})
    report = run_study("mine", params, tmp_path / "results")
    assert path.name == "mine.py" and set(printed) == {"full", "runs"}
    assert report.claims[0].verdict.outcome == "supported"
    assert report.rows and report.detectable.text


@pytest.mark.parametrize("name", ["Mine", "1st", "my-study", "../mine", ""])
def test_a_name_that_is_no_module_is_refused(root, name):
    with pytest.raises(UserError, match="small letters"):
        new_study(name, root / "studies")


def test_a_study_is_never_overwritten(root):
    new_study("mine", root / "studies")
    with pytest.raises(UserError, match=r"mine\.py exists"):
        new_study("mine", root / "studies")


def test_every_run_gets_its_seeds_and_every_study_reads_them(tmp_path):
    source = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", source)
    written = write_seeds(source, 3, tmp_path / "profiles" / "seeds-3")
    before, after = load_params(source), load_params(written)
    assert len(after.runs) == 3 * len(before.runs) and after.root == "../.."
    assert {after.runs[f"1m-int2{end}"].seed for end in ("", "-s1", "-s2")} == {0, 1, 2}
    assert after.baselines.keys() - before.baselines.keys() == {"3m-random-s1", "3m-random-s2"}
    assert (written.parent / "dvc.yaml").readlink().as_posix() == "../../dvc.yaml"
    for name in after.studies:
        study, section = load_study(name, ROOT / "studies"), after.studies[name]
        for runs in study.params.model_validate(section).conditions().values():
            trained = [run for run in runs if run in after.runs]
            assert len(trained) in (0, 3), (name, runs)


def test_seeds_that_would_collide_are_refused():
    raw = {"runs": {"a": {"seed": 0}, "a-s1": {"seed": 1}}, "baselines": {}, "studies": {}}
    with pytest.raises(UserError, match="an entry a-s1 already"):
        with_seeds(raw, 2)
    with pytest.raises(UserError, match="ask for 2 or more"):
        write_seeds(ROOT / "params.yaml", 1, ROOT / "profiles" / "seeds-1")
