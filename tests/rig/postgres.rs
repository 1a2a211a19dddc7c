//! A PostgreSQL server: as an unprivileged user, on a port of its own, in a scratch directory. It ends with the test, also
//! when the test is killed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

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
        Self::start_prepared(|_| {})
    }

    /// The same, with files that `prepare` has written before the server runs.
    pub fn start_prepared(prepare: impl FnOnce(&Self)) -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let found =
            versions.map(|version| version.unwrap().path().join("bin")).filter(|bin| bin.join("initdb").is_file());
        let Some(programs) = found.max() else {
            not_run("PostgreSQL is missing (Debian package postgresql)");
            return None;
        };
        let mut server = Self { programs, scratch: scratch(), port: lasting_port(), guard: None };
        let mut initdb = unprivileged(&server.programs.join("initdb"));
        initdb.args(["-A", "trust", "-U", "admin", "-E", "UTF8", "--no-locale", "--no-sync", "-D"]).arg(server.data());
        run(&mut initdb);
        prepare(&server);
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

    /// A second server that follows this one, with its own database of the same content. It takes no writes until it is
    /// promoted. This one waits with each commit until the second one has it.
    pub fn start_synchronous_standby(&self) -> Self {
        let standby = self.start_standby(self.port);
        self.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        self.sql("postgres", "SELECT pg_reload_conf()");
        eventually("the standby is synchronous", || {
            (self.sql("postgres", "SELECT sync_state FROM pg_stat_replication") == "sync").then_some(())
        });
        standby
    }

    /// The same, but this one waits for nothing. It is followed by way of this port.
    pub fn start_standby(&self, port: u16) -> Self {
        let mut standby =
            Self { programs: self.programs.clone(), scratch: scratch(), port: lasting_port(), guard: None };
        let mut copying = unprivileged(&self.programs.join("pg_basebackup"));
        let primary = format!("host=127.0.0.1 port={port} user=admin application_name=standby");
        copying.args(["-d", &primary, "-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]).arg(standby.data());
        run(&mut copying);
        standby.begin();
        standby
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.sql("postgres", "SELECT pg_promote()");
    }

    /// Adds a line to the configuration, for the next start.
    pub fn configure(&self, line: &str) {
        let path = self.data().join("postgresql.conf");
        let mut file = fs::File::options().append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }

    /// Writes a file into the data directory, readable by the server only.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.data().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Stops every process of the server, as a machine that hangs does: connections stay, and nothing answers.
    pub fn freeze(&self) {
        self.signal_all(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal_all(Signal::CONT);
    }

    /// The parent first: it must not start others meanwhile.
    fn signal_all(&self, signal: Signal) {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let Some(parent) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else { return };
        let send = |pid: i32| {
            // It may have ended.
            kill_process(Pid::from_raw(pid).unwrap(), signal).ok();
        };
        send(parent);
        children(parent).into_iter().for_each(send);
    }

    /// Ends it at once, as a crash does: the next start recovers.
    pub fn crash(&mut self) {
        self.end("QUIT");
    }

    fn end(&mut self, signal: &str) {
        if let Some(mut guard) = self.guard.take() {
            // Or a frozen one would never hear it.
            self.thaw();
            // The guard may have ended with its server.
            drop(writeln!(guard.stdin.take().unwrap(), "{signal}"));
            guard.wait().unwrap();
        }
    }

    pub fn url(&self) -> String {
        self.url_by(self.port)
    }

    /// The database, by another port that leads to the server.
    pub fn url_by(&self, port: u16) -> String {
        format!("postgres://admin@127.0.0.1:{port}/orders")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a statement prints.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        self.sql_by(self.port, database, statement)
    }

    /// The same, by another port that leads to the server.
    pub fn sql_by(&self, port: u16, database: &str, statement: &str) -> String {
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
            &port.to_string(),
        ]);
        run(psql.args(["-d", database, "-c", statement]))
    }

    /// Prepares the database by sendoff's own command.
    pub fn migrate(&self) -> String {
        self.migrate_by(&self.url())
    }

    /// The same, by another way to the server.
    pub fn migrate_by(&self, url: &str) -> String {
        let (code, said) = sendoff(&["postgres", "migrate", "--url", url]);
        assert_eq!(code, Some(0), "{said}");
        said
    }

    /// What `sendoff postgres check` says, with settings: its exit code, and all of its output.
    pub fn check_by(&self, url: &str, settings: &[&str]) -> (Option<i32>, String) {
        let mut args = vec!["postgres", "check", "--url", url];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        sendoff(&args)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end("QUIT");
    }
}

/// A directory of the user that the server runs as.
fn scratch() -> tempfile::TempDir {
    let scratch = tempfile::Builder::new().prefix("sendoff-postgresql-").tempdir().unwrap();
    if is_root() {
        chown(scratch.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    scratch
}

/// The processes whose parent this is.
fn children(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        // The name is in parentheses, and may contain anything. State and parent follow it.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').nth(1) == Some(&parent.to_string()));
        after_name == Some(true)
    };
    pids.filter(is_child).collect()
}

/// A program that runs as the user of the servers.
pub fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env("LC_ALL", "C").current_dir("/");
    command
}

/// Runs sendoff's own command. Returns its exit code, and all of its output.
pub fn sendoff(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sendoff")).args(args).env_clear().output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), format!("{text}{errors}"))
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
