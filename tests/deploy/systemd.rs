//! Tests the units: verified, rated, and run by a systemd that is booted for this.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::tools::{boot, is_root, root, said, succeed, tool};

/// The unit from deploy/, with the binary of this build instead of the installed one.
fn unit(binary: &str, more: &str) -> String {
    let unit = std::fs::read_to_string(root().join("deploy/systemd/sendoff.service")).unwrap();
    let own = unit.replace("/usr/bin/sendoff", binary).replace("WatchdogSec=60\n", &format!("WatchdogSec=60\n{more}"));
    assert!(own.contains(binary) && own.contains(more));
    own
}

#[test]
fn the_units_are_verified_and_hardened() {
    let Some(analyze) = tool("systemd-analyze", "systemd") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let (service, socket) = (scratch.path().join("sendoff.service"), scratch.path().join("sendoff.socket"));
    std::fs::write(&service, unit(env!("CARGO_BIN_EXE_sendoff"), "")).unwrap();
    std::fs::copy(root().join("deploy/systemd/sendoff.socket"), &socket).unwrap();
    let output = Command::new(&analyze).args(["verify", "--man=no"]).args([&service, &socket]).output().unwrap();
    // systemd-analyze reports faults but succeeds. Before 254 it does not know the growing pauses, and says that it
    // ignores them.
    let is_news =
        |line: &&str| !(line.contains("Unknown key") && line.contains("'Restart") && line.ends_with("ignoring."));
    let all = said(&output);
    let faults: Vec<&str> = all.lines().map(str::trim).filter(|line| !line.is_empty()).filter(is_news).collect();
    assert!(output.status.success() && faults.is_empty(), "{faults:#?}");
    // The exposure level in tenths: 1.5 of 10.
    succeed(Command::new(&analyze).args(["security", "--offline=true", "--threshold=15"]).arg(&service));
}

#[test]
fn the_deployed_configuration_has_no_problems() {
    let mut check = crate::tools::sendoff();
    check.env("STATE_DIRECTORY", "/var/lib/sendoff").args(["check-config", "--config"]);
    let text = succeed(check.arg(root().join("deploy/systemd/sendoff.toml")));
    assert!(text.contains("no problems"), "{text}");
}

/// A unit that runs /opt/in_container.sh.
pub const CHECK: &str = "[Service]\nType=oneshot\nExecStart=/bin/bash /opt/in_container.sh\n\
    StandardOutput=append:/out/log\nStandardError=append:/out/log\n";

#[test]
fn a_real_systemd_starts_reloads_restarts_and_watches_it_and_gives_a_hand_off_its_time() {
    let Some(nspawn) = tool("systemd-nspawn", "systemd-container") else { return };
    if !is_root() {
        return crate::rig::tools::not_allowed("booting a container needs root");
    }
    let scratch = tempfile::Builder::new().prefix("sendoff-").tempdir().unwrap();
    let dir = scratch.path();
    let (out, etc) = (dir.join("out"), dir.join("etc"));
    for made in [&out, &etc] {
        std::fs::create_dir(made).unwrap();
    }
    open(dir);
    open(&etc);
    let write = |path: std::path::PathBuf, text: &str| std::fs::write(path, text).unwrap();
    write(
        dir.join("sendoff.service"),
        &unit(
            "/opt/sendoff",
            "WatchdogSec=3\nStandardError=append:/out/daemon\nLoadCredential=orders.token:/etc/sendoff/orders.token\n",
        ),
    );
    write(dir.join("check.service"), CHECK);
    write(
        etc.join("sendoff.toml"),
        "[lambda]\nregion = \"eu-central-1\"\nendpoint_url = \"http://127.0.0.1:9\"\n[log]\nlevel = \"info\"\n\
         [auth]\nadmin = \"required\"\n[clients.orders]\n\
         functions = \"orders\"\ntoken_file = \"/run/credentials/sendoff.service/orders.token\"\n",
    );
    write(etc.join("orders.token"), "token-0123456789012345678901234567890\n");
    std::fs::set_permissions(etc.join("orders.token"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    write(etc.join("environment"), "AWS_ACCESS_KEY_ID=x\nAWS_SECRET_ACCESS_KEY=y\nAWS_EC2_METADATA_DISABLED=true\n");
    let bind = |from: &Path, to: &str| format!("--bind-ro={}:{to}", from.display());
    let mut boot = boot(&nspawn, "unit", 120);
    boot.args(["-D", "/", "--volatile=yes", "--bind-ro=/etc/ssl"]);
    boot.arg(bind(&dir.join("sendoff.service"), "/etc/systemd/system/sendoff.service"));
    boot.arg(bind(&root().join("deploy/systemd/sendoff.socket"), "/etc/systemd/system/sendoff.socket"));
    boot.arg(bind(&dir.join("check.service"), "/etc/systemd/system/check.service"));
    boot.arg(bind(Path::new(env!("CARGO_BIN_EXE_sendoff")), "/opt/sendoff"));
    boot.arg(bind(&root().join("tests/deploy/in_container.sh"), "/opt/in_container.sh"));
    boot.arg(format!("--bind={}:/etc/sendoff", etc.display())).arg(format!("--bind={}:/out", out.display()));
    let booted = boot.arg("systemd.unit=check.service").stdin(std::process::Stdio::null()).output().unwrap();

    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap_or_default();
    let all = ["seen", "log", "daemon", "receiver"].map(read).join("\n") + &said(&booted);
    let text = read("seen");
    let seen: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let saw = |name: &str| seen.get(name).copied().unwrap_or_default();
    for (name, expected) in [
        ("first-event", "accepted"),
        ("active", "active"),
        ("user", "not-root"),
        ("unix-socket", "there"),
        ("admin-socket", "600"),
        ("root-operates", "yes"),
        ("another-user", "refused"),
        ("known-client", "refused for payroll"),
        ("reloaded-same-process", "yes"),
        ("reloaded-level", "warn"),
        ("loop-refused", "0"),
        ("watchdog-restarts", "1"),
        ("still-trying", "yes"),
        ("socket-survives", "active"),
        ("repaired", "ready"),
        ("started-again", "yes"),
        ("private", "700 0"),
        ("stopped", "success 0"),
        ("stop-timeout", "2s"),
        ("handed-over", "success 0"),
        ("received-all", "yes"),
        ("done", "yes"),
    ] {
        assert_eq!(saw(name), expected, "{name} in\n{all}");
    }
    assert!(saw("status").contains("1 event stored"), "{all}");
    let number = |name: &str| saw(name).parse::<u64>().unwrap_or(0);
    assert!(number("loop-accepted") >= 5, "{all}");
    assert_eq!(number("kept"), number("loop-accepted") + 1, "{all}");
    assert_eq!(number("kept-after-kill"), number("kept"), "{all}");
}

/// Makes a directory readable for the unit's user.
fn open(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}
