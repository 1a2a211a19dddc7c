//! A PostgreSQL server: as an unprivileged user, on a port of its own, in a scratch directory. It ends with the test, also
//! when the test is killed.

use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::tools::not_run;
use super::{eventually, lasting_port};

/// `nobody`, whom PostgreSQL runs as if the tests run as root.
const NOBODY: u32 = 65_534;

/// Runs the server ($1: programs, $2: scratch directory, $3: port) until its standard input ends, or until it is told a
/// signal to end it by.
const GUARD: &str = r#"
"$1/postgres" -D "$2/data" -c listen_addresses=127.0.0.1 -c port="$3" -c unix_socket_directories="$2" -c max_connections=100 \
  -c shared_buffers=32MB </dev/null >>"$2/log" 2>&1 &
server=$!
signal=QUIT
while read -r line; do signal="$line"; break; done
kill -"$signal" "$server" 2>/dev/null
wait "$server"
"#;

/// A server that can be ended and started again.
pub struct Postgres {
    programs: PathBuf,
    scratch: tempfile::TempDir,
    port: u16,
    guard: Option<Child>,
}

impl Postgres {
    /// A server with an empty database `orders`. `None`, after a message, if there is no PostgreSQL and none is required.
    pub fn start() -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let found =
            versions.map(|version| version.unwrap().path().join("bin")).filter(|bin| bin.join("initdb").is_file());
        let Some(programs) = found.max() else {
            not_run("PostgreSQL is missing (Debian package postgresql)");
            return None;
        };
        let scratch = tempfile::Builder::new().prefix("sendoff-postgresql-").tempdir().unwrap();
        if is_root() {
            chown(scratch.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut initdb = unprivileged(&programs.join("initdb"));
        initdb.args(["-A", "trust", "-U", "admin", "-E", "UTF8", "--no-locale", "-D"]).arg(scratch.path().join("data"));
        run(&mut initdb);
        let mut server = Self { programs, scratch, port: lasting_port(), guard: None };
        server.begin();
        server.sql("postgres", "CREATE DATABASE orders");
        Some(server)
    }

    /// Starts it, again or for the first time, and waits until it takes connections.
    pub fn begin(&mut self) {
        let mut guard = unprivileged(Path::new("sh"));
        guard.args(["-c", GUARD, "guard"]).arg(&self.programs).arg(self.scratch.path()).arg(self.port.to_string());
        self.guard = Some(guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        eventually("PostgreSQL takes connections", || {
            let mut asking = Command::new(self.programs.join("pg_isready"));
            asking.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            asking.status().unwrap().success().then_some(())
        });
    }

    /// Ends it at once, as a crash does: the next start recovers.
    pub fn crash(&mut self) {
        self.end("QUIT");
    }

    fn end(&mut self, signal: &str) {
        if let Some(mut guard) = self.guard.take() {
            // The guard may have ended with its server.
            drop(writeln!(guard.stdin.take().unwrap(), "{signal}"));
            guard.wait().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("postgres://admin@127.0.0.1:{}/orders", self.port)
    }

    /// What a statement prints.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            "admin",
            "-p",
            &self.port.to_string(),
        ]);
        run(psql.args(["-d", database, "-c", statement]))
    }

    /// Prepares the database by sendoff's own command.
    pub fn migrate(&self) -> String {
        let mut migrate = Command::new(env!("CARGO_BIN_EXE_sendoff"));
        migrate.args(["postgres", "migrate", "--url", &self.url()]).env_clear();
        run(&mut migrate)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end("QUIT");
    }
}

fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env("LC_ALL", "C").current_dir("/");
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {text}{errors}");
    text.trim().to_owned()
}
