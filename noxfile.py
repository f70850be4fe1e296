"""Every check of the repository; `uv run nox` runs them all, and CI calls nothing else."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PYTHON = "3.11"
MEMBERS = {
    nox.project.load_toml(str(path))["project"]["name"]: path.parent.relative_to(ROOT)
    for folder in ("packages", "apps")
    for path in sorted(ROOT.glob(f"{folder}/*/pyproject.toml"))
}
CODE = ("packages", "apps", "tests", "benchmarks", "noxfile.py")


def sync(session: nox.Session, *selection: str) -> None:
    """Fill the session's environment with exactly what uv.lock holds for `selection`."""
    environment = session.virtualenv.location
    session.run_install(
        *("uv", "sync", "--locked", "--no-default-groups", *selection),
        env={"UV_PROJECT_ENVIRONMENT": environment, "UV_PYTHON": environment},
        external=True,
    )


def run_tests(session: nox.Session, name: str, folder: Path) -> None:
    """Run a folder's tests under branch coverage, kept apart so that sessions may run in parallel."""
    coverage = {"COVERAGE_FILE": str(ROOT / f".coverage.{name}")}
    session.run("coverage", "run", "-m", "pytest", str(folder), *session.posargs, env=coverage)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Style, formatting and spelling."""
    sync(session, "--only-group", "lint")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("codespell", *CODE, "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Static types of every member's source; what tests pass in on purpose is checked when they run."""
    sync(session, "--all-packages", "--all-extras", "--group", "types")
    sources = [str(folder / "src") for folder in MEMBERS.values()]
    session.run("ty", "check", *sources, "--python", session.virtualenv.location)


@nox.session(python=PYTHON)
def architecture(session: nox.Session) -> None:
    """The three layers, and that each member declares exactly what it imports."""
    sync(session, "--all-packages", "--all-extras", "--group", "architecture")
    session.run("lint-imports")
    for folder in MEMBERS.values():
        with session.chdir(ROOT / folder):
            session.run("deptry", "src")


@nox.session(python=PYTHON)
@nox.parametrize("member", list(MEMBERS), ids=list(MEMBERS))
def tests(session: nox.Session, member: str) -> None:
    """One member's own tests, with nothing installed but what that member declares."""
    sync(session, "--package", member, "--all-extras", "--group", "test")
    run_tests(session, member, MEMBERS[member] / "tests")


@nox.session(python=PYTHON)
def integration(session: nox.Session) -> None:
    """Tests across members: training, resume, ranks, README commands."""
    sync(session, "--all-packages", "--group", "test")
    run_tests(session, "integration", Path("tests"))
