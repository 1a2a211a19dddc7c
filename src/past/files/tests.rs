use super::*;
use crate::event::FunctionName;
use crate::past::How;
use crate::past::record::encode;

const DAY: Duration = Duration::from_secs(86_400);
const START: UnixMillis = UnixMillis(1_790_000_000_000);

fn bounds(bytes_max: u64) -> Bounds {
    Bounds { bytes_max, keep: DAY, reserve: 0 }
}

fn id(n: u32) -> EventId {
    EventId::mint(START.plus(Duration::from_millis(n.into())), u128::from(n) << 64, &FunctionName::new("orders"))
}

fn end(n: u32, at: UnixMillis) -> End {
    End::bare(id(n), FunctionName::new("orders"), at, How::Purged { by: format!("oncall-{n}") })
}

fn records(ids: std::ops::Range<u32>, at: UnixMillis) -> Vec<u8> {
    let mut records = Vec::new();
    ids.for_each(|n| encode(&end(n, at), &mut records));
    records
}

/// The names of the files, without the lock.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "lock");
    names.sort();
    names
}

fn bytes_of(dir: &Path) -> u64 {
    names(dir).iter().map(|name| fs::metadata(dir.join(name)).unwrap().len()).sum()
}

#[test]
fn every_end_is_found_before_and_after_a_start_and_after_its_file_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let found = |files: &Files, n| files.find(id(n), START).unwrap();
    let mut files = Files::open(dir.path(), bounds(64 << 20)).unwrap();
    for batch in 0..100 {
        files.append(&records(batch * 100..(batch + 1) * 100, START), START).unwrap();
    }
    assert_eq!(names(dir.path()), ["0000000001.ends"], "not full yet");
    let (first, last) = (end(0, START), end(9_999, START));
    assert_eq!((found(&files, 0), found(&files, 9_999)), (Some(first.clone()), Some(last.clone())));
    assert_eq!(found(&files, 10_000), None);
    assert!(Files::open(dir.path(), bounds(1 << 20)).is_err(), "it is in use");
    drop(files);

    // As after a kill: the file is written on, without what was cut off.
    let path = dir.path().join("0000000001.ends");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &records(10_000..10_001, START)[..20]].concat()).unwrap();
    let mut files = Files::open(dir.path(), bounds(64 << 20)).unwrap();
    assert_eq!((found(&files, 0), found(&files, 9_999)), (Some(first.clone()), Some(last.clone())));
    files.append(&records(10_000..10_002, START), START).unwrap();
    files.seal().unwrap();
    assert_eq!(names(dir.path()), ["0000000001.ends", "0000000001.index"]);
    let check = |files: &Files| {
        assert_eq!((found(files, 0), found(files, 9_999)), (Some(first.clone()), Some(last.clone())));
        assert_eq!((found(files, 10_001), found(files, 10_002)), (Some(end(10_001, START)), None));
    };
    check(&files);
    drop(files);
    check(&Files::open(dir.path(), bounds(64 << 20)).unwrap());
}

#[test]
fn an_index_that_is_damaged_or_missing_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::open(dir.path(), bounds(64 << 20)).unwrap();
    for n in 0..3 {
        files.append(&records(n..n + 1, START), START).unwrap();
        files.seal().unwrap();
    }
    drop(files);
    let index = |n: u32| dir.path().join(format!("{n:010}.index"));
    fs::remove_file(index(1)).unwrap();
    let mut bytes = fs::read(index(2)).unwrap();
    bytes[20] ^= 1;
    fs::write(index(2), bytes).unwrap();
    // Left behind by a crash.
    fs::write(index(9), b"of no segment").unwrap();
    fs::write(dir.path().join("0000000003.new"), b"half").unwrap();
    let files = Files::open(dir.path(), bounds(64 << 20)).unwrap();
    for n in 0..3 {
        assert_eq!(files.find(id(n), START).unwrap(), Some(end(n, START)));
    }
    assert_eq!(names(dir.path()).len(), 6, "{:?}", names(dir.path()));
}

#[test]
fn the_oldest_make_way_and_nothing_exceeds_the_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let max = 1 << 20;
    let mut files = Files::open(dir.path(), bounds(max)).unwrap();
    let mut most = 0;
    for batch in 0..300 {
        files.append(&records(batch * 50..(batch + 1) * 50, START), START).unwrap();
        most = most.max(bytes_of(dir.path()));
    }
    assert!(most <= max && most > max / 2, "{most} bytes");
    assert_eq!(files.find(id(0), START).unwrap(), None, "the oldest made way");
    assert!(files.find(id(9_000), START).unwrap().is_some());
    drop(files);

    // Then they are too old. Nothing else happens meanwhile.
    let mut files = Files::open(dir.path(), bounds(max)).unwrap();
    let later = START.plus(DAY + Duration::from_secs(1));
    assert_eq!(files.find(id(14_999), later).unwrap(), None, "not shown any more");
    files.sweep(later).unwrap();
    assert_eq!(bytes_of(dir.path()), 0, "{:?}", names(dir.path()));
    files.append(&records(1..2, later), later).unwrap();
    assert_eq!(files.find(id(1), later).unwrap(), Some(end(1, later)));
}

#[test]
fn a_disk_that_is_nearly_full_costs_old_ends_and_then_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::open(dir.path(), bounds(1 << 20)).unwrap();
    files.append(&records(0..1, START), START).unwrap();
    files.seal().unwrap();
    files.bounds.reserve = u64::MAX;
    let error = files.append(&records(1..2, START), START).unwrap_err();
    assert!(error.to_string().contains("outbox.disk_reserve"), "{error}");
    assert_eq!(bytes_of(dir.path()), 0);
    files.bounds.reserve = 0;
    files.append(&records(2..3, START), START).unwrap();
    assert!(files.find(id(2), START).unwrap().is_some());
}

#[test]
fn an_event_that_ended_twice_is_shown_with_its_latest_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::open(dir.path(), bounds(1 << 20)).unwrap();
    // Handed over, handed back, and removed.
    let (first, second) = (START, START.plus(Duration::from_secs(1)));
    for at in [first, second] {
        files.append(&records(5..6, at), at).unwrap();
        files.seal().unwrap();
    }
    assert_eq!(files.find(id(5), second).unwrap(), Some(end(5, second)));
}

#[test]
fn a_directory_of_the_first_release_is_readable_and_one_of_a_later_release_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/history-v1");
    for entry in fs::read_dir(&fixture).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let files = Files::open(dir.path(), bounds(1 << 20)).unwrap();
    assert_eq!((files.sealed.len(), files.active.is_some()), (1, true));
    for n in 0..3 {
        assert_eq!(files.find(id(n), START).unwrap(), Some(end(n, START)));
    }
    drop(files);

    let path = dir.path().join("0000000001.index");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::write(&path, &bytes).unwrap();
    let error = Files::open(dir.path(), bounds(1 << 20)).unwrap_err();
    assert!(error.to_string().contains("a newer sendoff"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// Makes the fixture. Run it once for a format.
#[test]
#[ignore = "makes tests/fixtures/history-v1 anew"]
fn make_the_fixture() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/history-v1");
    let mut files = Files::open(&dir, bounds(1 << 20)).unwrap();
    files.append(&records(0..2, START), START).unwrap();
    files.seal().unwrap();
    files.append(&records(2..3, START), START).unwrap();
    fs::remove_file(dir.join("lock")).unwrap();
}
