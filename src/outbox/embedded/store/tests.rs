use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::outbox::Limits;
use crate::outbox::embedded::keys;
use crate::outbox::embedded::kv::{Batch, Kv};
use crate::outbox::embedded::record::KeyRecord;

fn settings() -> Settings {
    Settings {
        limits: Limits {
            bytes_max: 1 << 30,
            events_max: 1_000,
            functions_max: 100,
            dedupe_window: Duration::from_secs(3_600),
            sdk_window: Duration::from_secs(60),
        },
        disk_reserve: 0,
        segment_bytes: 1 << 20,
        cache: 8 << 20,
    }
}

fn put(store: &mut Store, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(key.to_vec(), value.to_vec());
    store.commit(&batch).unwrap();
}

/// One life of a store: opens, does, closes.
fn with<T>(state: &Path, work: impl FnOnce(&mut Store, Option<Salvage>) -> T) -> Result<T, OpenError> {
    let Opened { mut store, salvaged } = open(state, &settings())?;
    Ok(work(&mut store, salvaged))
}

fn value(state: &Path, key: &[u8]) -> (Option<Bytes>, bool) {
    with(state, |store, salvaged| (store.get(key).unwrap(), salvaged.is_some())).unwrap()
}

fn kept_value() -> Option<Bytes> {
    Some(Bytes::from_static(b"kept"))
}

#[test]
fn rule_4_a_store_half_made_is_made_again() {
    for half in ["nothing", "a journal", "a segment that is empty", "an index half made"] {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join(ASIDE);
        fs::create_dir_all(aside.join(JOURNAL)).unwrap();
        match half {
            "nothing" => fs::remove_dir(aside.join(JOURNAL)).unwrap(),
            "a journal" => {}
            "a segment that is empty" => fs::write(aside.join(JOURNAL).join("0000000001.segment"), b"").unwrap(),
            _ => {
                fs::create_dir_all(aside.join(INDEX_ASIDE).join("blobs")).unwrap();
                fs::write(aside.join(INDEX_ASIDE).join("conf"), b"half").unwrap();
            }
        }
        with(dir.path(), |store, _| put(store, b"pa", b"kept")).unwrap();
        assert!(!aside.exists());
        assert_eq!(value(dir.path(), b"pa"), (kept_value(), false), "{half}");
    }
}

#[test]
fn an_index_that_is_lost_older_or_damaged_costs_nothing_and_is_kept() {
    for damage in ["no index", "no db", "an older one", "conf overwritten", "db overwritten", "interrupted"] {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(STORE).join(INDEX);
        let older = dir.path().join("older");
        // A later life finds a later checkpoint.
        with(dir.path(), |store, _| put(store, b"pa", b"kept")).unwrap();
        for file in ["db", "conf"] {
            fs::create_dir_all(&older).unwrap();
            fs::copy(index.join(file), older.join(file)).unwrap();
        }
        with(dir.path(), |store, _| put(store, b"pb", b"kept")).unwrap();
        match damage {
            "no index" | "interrupted" => fs::remove_dir_all(&index).unwrap(),
            "no db" => fs::remove_file(index.join("db")).unwrap(),
            "an older one" => {
                fs::remove_dir_all(&index).unwrap();
                fs::create_dir_all(index.join("blobs")).unwrap();
                for file in ["db", "conf"] {
                    fs::copy(older.join(file), index.join(file)).unwrap();
                }
            }
            "conf overwritten" => fs::write(index.join("conf"), b"no configuration").unwrap(),
            _ => {
                let bytes = fs::metadata(index.join("db")).unwrap().len();
                fs::write(index.join("db"), vec![0x5a; bytes as usize]).unwrap();
            }
        }
        if damage == "interrupted" {
            fs::create_dir_all(index.with_file_name(INDEX_ASIDE)).unwrap();
        }
        let found = |key| value(dir.path(), key).0;
        assert_eq!((found(b"pa"), found(b"pb")), (kept_value(), kept_value()), "{damage}");
        let set_aside = kept(dir.path()).len();
        assert_eq!(set_aside, usize::from(!matches!(damage, "no index" | "interrupted" | "an older one")), "{damage}");
        assert!(with(dir.path(), |_, salvaged| salvaged.is_none()).unwrap(), "{damage}: the new one is sound");
    }
}

#[test]
fn damage_that_sled_met_in_its_last_life_makes_a_new_index() {
    let dir = tempfile::tempdir().unwrap();
    with(dir.path(), |store, _| put(store, b"pa", b"kept")).unwrap();
    suspicion::Note::of(dir.path()).raise(Suspicion::Index);
    assert_eq!(value(dir.path(), b"pa"), (kept_value(), true));
    assert_eq!(value(dir.path(), b"pa"), (kept_value(), false));
    assert_eq!(kept(dir.path()).len(), 1);
}

#[test]
fn a_store_that_is_gone_is_not_begun_anew_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    with(dir.path(), |store, _| put(store, b"pa", b"kept")).unwrap();
    fs::remove_dir_all(dir.path().join(STORE)).unwrap();
    let refused = with(dir.path(), |_, _| ()).unwrap_err().to_string();
    assert!(refused.contains("witness"), "it says what to do: {refused}");
    fs::remove_file(dir.path().join("witness")).unwrap();
    with(dir.path(), |_, _| ()).unwrap();
}

#[test]
fn an_interrupted_salvage_is_finished_or_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join(STORE);
    with(dir.path(), |store, _| put(store, b"pa", b"kept")).unwrap();
    fs::create_dir(dir.path().join("outbox.salvaged")).unwrap();
    fs::create_dir(dir.path().join("outbox.copy")).unwrap();
    assert_eq!(value(dir.path(), b"pa"), (kept_value(), false));
    assert!(!dir.path().join("outbox.salvaged").exists() && !dir.path().join("outbox.copy").exists());
    fs::rename(&store, dir.path().join("outbox.salvaged")).unwrap();
    assert_eq!(value(dir.path(), b"pa"), (kept_value(), false));
}

#[test]
fn a_journal_without_its_end_is_salvaged_once_and_the_witness_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..3 {
        with(dir.path(), |store, _| put(store, keys_of(n), b"kept")).unwrap();
    }
    let newest = journal::files::segments_in(&dir.path().join(STORE).join(JOURNAL)).unwrap().pop().unwrap();
    let bytes = fs::metadata(&newest).unwrap().len();
    File::options().write(true).open(&newest).unwrap().set_len(bytes - 1).unwrap();
    let salvaged = with(dir.path(), |_, salvaged| salvaged).unwrap().expect("it is not met in silence");
    assert!(salvaged.report.unreadable_ranges > 0 && salvaged.kept.to_string_lossy().contains("outbox.damaged-"));
    assert!(salvaged.kept.join(JOURNAL).exists(), "all of it is kept");
    assert!(with(dir.path(), |_, salvaged| salvaged.is_none()).unwrap(), "the new one is sound");
}

#[test]
fn a_frame_within_a_payload_brings_nothing_into_a_salvaged_store() {
    let dir = tempfile::tempdir().unwrap();
    // Remembered keys are carried over by a salvage as they are.
    let record = KeyRecord { first: EventId::from_bytes([7; 16]), fingerprint: [1; 16], expires_at: UnixMillis::MAX };
    let (good, forged) = ([b'k'; keys::REMEMBERED_BYTES], [b'k', 1].repeat(keys::REMEMBERED_BYTES / 2 + 1));
    let forged = &forged[..keys::REMEMBERED_BYTES];
    let mut frame = journal::frame::FrameWriter::default();
    frame.begin();
    frame.op(forged, Some(&record.encode()));
    let payload = [b"client's ", frame.finish(2, &journal::seal::Seal::PLAIN)].concat();
    with(dir.path(), |store, _| {
        put(store, b"pa", b"kept");
        put(store, b"pb", &payload);
        put(store, &good, &record.encode());
    })
    .unwrap();
    let newest = journal::files::segments_in(&dir.path().join(STORE).join(JOURNAL)).unwrap().pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    let at = bytes.windows(8).position(|window| window == b"client's").unwrap();
    bytes[at] ^= 1;
    fs::write(&newest, bytes).unwrap();

    let examined = examine(dir.path(), &settings(), false).unwrap().unwrap();
    assert!(examined.unusable.is_some() || !examined.report.is_sound(), "{examined:?}");
    let salvaged = with(dir.path(), |_, salvaged| salvaged).unwrap();
    assert!(salvaged.is_some_and(|salvaged| salvaged.report.unreadable_ranges > 0 && salvaged.report.keys == 1));
    assert!(value(dir.path(), &good).0.is_some());
    assert_eq!(value(dir.path(), forged).0, None);
}

/// Every file below `dir`, with its contents.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn a_check_changes_no_byte_of_the_store() {
    for what in ["sound", "without its index", "with an incomplete commit", "damaged", "without a segment"] {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..3 {
            with(dir.path(), |store, _| put(store, keys_of(n), b"kept")).unwrap();
        }
        let journal = dir.path().join(STORE).join(JOURNAL);
        let newest = journal::files::segments_in(&journal).unwrap().pop().unwrap();
        let bytes = fs::read(&newest).unwrap();
        match what {
            "sound" => {}
            "without its index" => fs::remove_dir_all(dir.path().join(STORE).join(INDEX)).unwrap(),
            "with an incomplete commit" => fs::write(&newest, [&bytes[..], b"torn"].concat()).unwrap(),
            "damaged" => fs::write(&newest, &bytes[..bytes.len() - 1]).unwrap(),
            _ => fs::remove_file(&newest).unwrap(),
        }
        let before = files_below(dir.path());
        let examined = examine(dir.path(), &settings(), false).unwrap().unwrap();
        let is_sound = examined.unusable.is_none() && examined.report.is_sound();
        assert_eq!(is_sound, !["damaged", "without a segment"].contains(&what), "{what}: {examined:?}");
        assert!(files_below(dir.path()) == before, "{what}: the check has changed the store");
    }
}

#[test]
fn a_check_leaves_a_store_of_the_format_before_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-v1"), dir.path());
    let before = files_below(&dir.path().join(STORE));
    let examined = examine(dir.path(), &settings(), false).unwrap().unwrap();
    assert!(examined.unusable.is_none() && examined.report.is_sound() && examined.report.events > 0, "{examined:?}");
    assert!(files_below(&dir.path().join(STORE)) == before);
}

fn keys_of(n: u8) -> &'static [u8] {
    [&b"pa"[..], b"pb", b"pc"][usize::from(n)]
}

#[test]
fn a_file_system_that_reports_no_blocks_is_not_taken_for_a_full_one() {
    assert_eq!(free_of(0, 0, 0), None);
    assert_eq!(free_of(0, 0, 4_096), None);
    assert_eq!(free_of(1_000, 0, 4_096), Some(0), "that one is full");
    assert_eq!(free_of(1_000, 10, 4_096), Some(40_960));
}

#[test]
fn a_second_store_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path: std::path::PathBuf = dir.path().join("state");
    let first = open(&path, &settings()).unwrap();
    let second = open(&path, &settings()).err().unwrap().to_string();
    assert!(second.contains("in use by another sendoff"), "{second}");
    drop(first);
}
