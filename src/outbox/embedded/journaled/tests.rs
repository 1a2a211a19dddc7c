use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use proptest::prelude::*;

use super::entry::CHECKPOINT;
use super::*;
use crate::outbox::embedded::journal::files::segments_in;
use crate::outbox::embedded::journal::frame::{FRAME_HEAD_BYTES, FrameWriter, SegmentHead};
use crate::outbox::embedded::journal::seal::Seal;

mod forged;

mod starved;

type Map = BTreeMap<Vec<u8>, Bytes>;

/// An index whose content outlives it.
#[derive(Debug, Clone, Default)]
struct MapIndex(Arc<Mutex<Map>>);

impl MapIndex {
    fn map(&self) -> std::sync::MutexGuard<'_, Map> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> Map {
        self.map().clone()
    }
}

impl Index for MapIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        Ok(self.map().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        let map = self.map();
        let range = map.range((Bound::Included(from.to_vec()), Bound::Excluded(to.to_vec())));
        let found: Vec<_> = range.map(|(key, value)| Ok((Bytes::copy_from_slice(key), value.clone()))).collect();
        found.into_iter()
    }

    fn commit(&self, batch: &Batch) -> Result<(), Failed> {
        let mut map = self.map();
        for (key, value) in batch.writes() {
            match value {
                Some(value) => drop(map.insert(key.to_vec(), value.clone())),
                None => drop(map.remove(key)),
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        0
    }
}

/// What the state directory's watcher would have recorded.
#[derive(Clone, Default)]
struct Heard(Arc<(Mutex<Option<u64>>, AtomicBool)>);

impl Heard {
    fn seen(&self) -> Option<u64> {
        *self.0.0.lock().unwrap()
    }

    fn damage(&self) -> bool {
        self.0.1.load(Ordering::Relaxed)
    }
}

impl Watch for Heard {
    fn committed(&self, commit: u64) -> io::Result<()> {
        *self.0.0.lock().unwrap() = Some(commit);
        Ok(())
    }

    fn damaged(&self) {
        self.0.1.store(true, Ordering::Relaxed);
    }

    fn free(&self) -> Option<u64> {
        None
    }
}

type Store = Journaled<MapIndex, Heard>;

/// A journal on disk, and an index beside it, that outlive a store.
struct Bench {
    dir: tempfile::TempDir,
    index: MapIndex,
    heard: Heard,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let settings =
            Settings { slack: 1_000, held_bytes_max: 200, keys_per_commit: 3, ..Settings::of(600, u64::MAX) };
        let bench = Self { dir, index: MapIndex::default(), heard: Heard::default(), settings };
        fs::create_dir(bench.journal()).unwrap();
        Journal::create(&bench.files(), 1).unwrap();
        bench.new_index();
        bench
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn files(&self) -> Directory {
        Directory::of(&self.journal())
    }

    fn new_index(&self) {
        self.index.map().clear();
        begin_index(&self.index, &Journal::open(self.files(), true).unwrap()).unwrap();
    }

    fn try_open(&self, lenient: bool) -> Result<Recovered<MapIndex, Heard>, Stale> {
        let journal = Journal::open(self.files(), lenient).unwrap();
        let (index, heard) = (self.index.clone(), self.heard.clone());
        Journaled::recover(journal, index, heard, self.settings, self.heard.seen(), lenient)
    }

    /// The live bytes according to the index, and the real ones.
    fn live(&self) -> (u64, u64) {
        let index = self.index.map();
        let entries =
            index.iter().filter(|(key, _)| *key != CHECKPOINT).map(|(_, entry)| Entry::decode(entry).unwrap());
        let said = Checkpoint::decode(&index[CHECKPOINT]).unwrap();
        (said.live, entries.map(|entry| u64::from(entry.at.bytes)).sum())
    }

    fn open(&self) -> Store {
        self.try_open(false).unwrap_or_else(|why| panic!("{why}")).store
    }

    fn segments(&self) -> Vec<PathBuf> {
        segments_in(&self.journal()).unwrap()
    }
}

fn pairs(store: &Store) -> Map {
    store.scan(&[1], &[0xff; 9]).map(|pair| pair.unwrap()).map(|(key, value)| (key.to_vec(), value)).collect()
}

fn put(store: &mut Store, key: &str, value: &str) {
    let mut batch = Batch::default();
    batch.put(key.as_bytes().to_vec(), value.to_owned());
    store.commit(&batch).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u8, Option<(u16, u8)>)>),
    Tend,
    Crash {
        torn: Option<u16>,
    },
    /// The index goes back to what it was at some earlier time, as sled may.
    CrashAndOlderIndex {
        nth: usize,
    },
    CrashAndLostIndex,
}

fn any_step() -> impl Strategy<Value = Step> {
    let write = (0..24_u8, proptest::option::weighted(0.6, (0..300_u16, any::<u8>())));
    prop_oneof![
        30 => proptest::collection::vec(write, 0..6).prop_map(Step::Commit),
        2 => Just(Step::Tend),
        2 => proptest::option::of(1..40_u16).prop_map(|torn| Step::Crash { torn }),
        1 => any::<usize>().prop_map(|nth| Step::CrashAndOlderIndex { nth }),
        1 => Just(Step::CrashAndLostIndex),
    ]
}

/// A batch of writes. Sometimes marks new keys as new.
fn batch(writes: &[(u8, Option<(u16, u8)>)], model: &Map) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in writes {
        let key = vec![b'k', *key];
        match value {
            Some((bytes, fill)) => {
                let value = vec![*fill; usize::from(*bytes)];
                if !model.contains_key(&key) && batch.pending(&key).is_none() && fill % 2 == 0 {
                    batch.put_new(key, value);
                } else {
                    batch.put(key, value);
                }
            }
            None => batch.remove(key),
        }
    }
    batch
}

/// How the frames of a segment with these bytes are sealed.
fn seal_of(bytes: &[u8]) -> Seal {
    Seal::of(SegmentHead::decode(bytes).unwrap().salt)
}

fn tear(bench: &Bench, bytes: u16) {
    let newest = bench.segments().pop().unwrap();
    let seal = seal_of(&fs::read(&newest).unwrap());
    let file = File::options().append(true).open(newest).unwrap();
    // The start of an unfinished frame.
    let mut frame = FrameWriter::default();
    frame.begin();
    frame.op(b"torn", Some(&[7; 64]));
    let frame = frame.finish(bench.heard.seen().map_or(1, |seen| seen + 1), &seal);
    io::Write::write_all(&mut &file, &frame[..usize::from(bytes).min(frame.len() - 1)]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn it_does_what_a_map_would_over_any_crashes_and_whatever_becomes_of_its_index(
        steps in proptest::collection::vec(any_step(), 0..120), in_turn in any::<bool>()
    ) {
        let mut bench = Bench::new();
        if in_turn {
            // Then a crash leaves half a checkpoint.
            bench.settings.checkpoints = Checkpoints::InTurn;
        }
        let (mut store, mut model) = (Some(bench.open()), Map::new());
        let mut indexes = vec![bench.index.snapshot()];
        for step in steps {
            match step {
                Step::Commit(writes) => {
                    let batch = batch(&writes, &model);
                    store.as_mut().unwrap().commit(&batch).unwrap();
                    for (key, value) in batch.writes() {
                        match value {
                            Some(value) => drop(model.insert(key.to_vec(), value.clone())),
                            None => drop(model.remove(key)),
                        }
                    }
                    indexes.push(bench.index.snapshot());
                }
                Step::Tend => while store.as_mut().unwrap().tend(0).unwrap() {},
                Step::Crash { torn } => {
                    drop(store.take());
                    torn.into_iter().for_each(|bytes| tear(&bench, bytes));
                }
                Step::CrashAndOlderIndex { nth } => {
                    drop(store.take());
                    *bench.index.map() = indexes[nth % indexes.len()].clone();
                    if matches!(bench.try_open(false), Err(Stale::Index(_))) {
                        bench.new_index();
                    }
                }
                Step::CrashAndLostIndex => {
                    drop(store.take());
                    bench.new_index();
                }
            }
            if store.is_none() {
                let (said, are) = bench.live();
                prop_assert_eq!(said, are);
            }
            let store = store.get_or_insert_with(|| bench.open());
            prop_assert_eq!(&pairs(store), &model);
            for key in model.keys() {
                prop_assert_eq!(store.get(key).unwrap(), model.get(key).cloned());
            }
        }
        prop_assert!(!bench.heard.damage());
    }
}

#[test]
fn what_is_gone_before_a_checkpoint_never_reaches_the_index() {
    let bench = Bench::new();
    let mut store = bench.open();
    for n in 0..200 {
        let key = format!("event {n}");
        let mut batch = Batch::default();
        batch.put_new(key.clone().into_bytes(), "x".repeat(200));
        store.commit(&batch).unwrap();
        let mut batch = Batch::default();
        batch.remove(key.into_bytes());
        batch.put(b"count".to_vec(), n.to_string());
        store.commit(&batch).unwrap();
    }
    drop(store);
    let keys: Vec<_> = bench.index.snapshot().into_keys().collect();
    // A segment may end between the two; what was caught so is removed by the next checkpoint.
    assert!(keys.len() <= 4 && keys.contains(&b"count".to_vec()), "{keys:?}");
}

#[test]
fn the_journal_stays_within_twice_what_is_live_and_its_slack() {
    let bench = Bench::new();
    let mut store = bench.open();
    // Some values at the start stay for ever, many later ones come and go.
    for n in 0..10 {
        put(&mut store, &format!("old {n}"), &"x".repeat(150));
    }
    let live = 10 * 200;
    for n in 0..3_000 {
        put(&mut store, &format!("new {}", n % 4), &format!("{n}{}", "x".repeat(140)));
        let bytes = store.disk().used;
        // What the index has yet to hear of, in two overlays at most, counts as live and is in the journal.
        let behind = 2 * OVERLAYS_MAX * bench.settings.segment_bytes;
        assert!(bytes <= 2 * (live + 1_000 + behind) + bench.settings.slack, "{bytes} after {n}");
    }
    let before = pairs(&store);
    assert_eq!(before.len(), 14);
    drop(store);
    assert_eq!(pairs(&bench.open()), before);
    bench.new_index();
    assert_eq!(pairs(&bench.open()), before, "from the journal alone");
}

#[test]
fn tending_gives_back_what_went_and_leaves_a_store_that_is_only_full_alone() {
    let mut bench = Bench::new();
    bench.settings.checkpoints = Checkpoints::InTurn;
    let mut store = bench.open();
    for n in 0..20 {
        put(&mut store, &format!("old {n}"), &"x".repeat(200));
    }
    let stored = 20 * 200;
    while store.tend(stored).unwrap() {}
    let before = bench.segments().len();
    for n in 0..50 {
        put(&mut store, "count", &n.to_string());
        while store.tend(stored).unwrap() {}
    }
    // Fifty short frames fill five of them.
    let after = bench.segments().len();
    assert!(after <= before + 6, "{before} segments, then {after}");
    // So that the next commit does not fill a segment, of which the index would be told anyway.
    while store.journal.segment_bytes(store.journal.newest()) > 200 {
        put(&mut store, "count", "more");
    }
    let mut batch = Batch::default();
    (4..20).for_each(|n| batch.remove(format!("old {n}").into_bytes()));
    store.commit(&batch).unwrap();
    while store.tend(4 * 200).unwrap() {}
    let (left, live) = (store.disk().used, 4 * 220 + 20);
    assert!(left <= 2 * live + bench.settings.slack + bench.settings.segment_bytes, "{left} bytes are left");
}

#[test]
fn a_damaged_value_is_told_apart_from_a_damaged_store() {
    let bench = Bench::new();
    let mut store = bench.open();
    put(&mut store, "bad", &"x".repeat(200));
    put(&mut store, "good", &"y".repeat(200));
    for n in 0..20 {
        put(&mut store, &format!("more {n}"), &"z".repeat(200));
    }
    drop(store);
    let first = &bench.segments()[0];
    let mut bytes = fs::read(first).unwrap();
    let at = bytes.windows(9).position(|window| window == b"xxxxxxxxx").unwrap();
    bytes[at] ^= 1;
    fs::write(first, bytes).unwrap();
    let store = bench.open();
    assert!(!bench.heard.damage(), "it is not read yet");
    let failed = store.get(b"bad").unwrap_err();
    assert!(failed.one_value && failed.why.contains("segment 1"), "{failed}");
    assert!(bench.heard.damage());
    assert!(store.get(b"good").unwrap().is_some());
    assert_eq!(store.keys(b"a", b"z").filter(Result::is_ok).count(), 22);
}

#[test]
fn a_journal_that_has_lost_its_end_or_a_piece_is_not_opened_in_silence() {
    for damage in ["cut", "cut between two commits", "zeroed at the end", "zeroed within", "a segment gone"] {
        let bench = Bench::new();
        let mut store = bench.open();
        for n in 0..40 {
            put(&mut store, &format!("{n}"), &"x".repeat(100));
        }
        let mut all = 40;
        while fs::metadata(bench.segments().pop().unwrap()).unwrap().len() < 200 {
            put(&mut store, &format!("{all}"), &"x".repeat(100));
            all += 1;
        }
        drop(store);
        // As if no checkpoint had finished, so that everything is read.
        bench.new_index();
        let segments = bench.segments();
        let newest = segments.last().unwrap();
        let (file, bytes) = (File::options().write(true).open(newest).unwrap(), fs::read(newest).unwrap());
        let mark = &bytes[seal_of(&bytes).start as usize..][..4];
        let frame = bytes.windows(4).rposition(|window| window == mark).unwrap_or(0) as u64;
        match damage {
            "cut" => file.set_len(bytes.len() as u64 - 3).unwrap(),
            "cut between two commits" => file.set_len(frame).unwrap(),
            "zeroed at the end" => {
                std::os::unix::fs::FileExt::write_all_at(&file, &[0; 50], bytes.len() as u64 - 50).unwrap()
            }
            "zeroed within" => {
                let file = File::options().write(true).open(&segments[2]).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, &[0; 50], 100).unwrap();
            }
            _ => fs::remove_file(&segments[1]).unwrap(),
        }
        if damage == "a segment gone" {
            assert!(Journal::open(bench.files(), false).is_err());
        } else {
            let refused = bench.try_open(false).err().unwrap();
            assert!(matches!(refused, Stale::Journal(_)), "{damage}: {refused}");
        }
        let Recovered { store, gaps } = bench.try_open(true).unwrap_or_else(|why| panic!("{damage}: {why}"));
        assert!(gaps > 0, "{damage}");
        let left = pairs(&store).len();
        assert!((1..all).contains(&left), "{damage}: {left} of {all} are left");
    }
}

/// A segment is begun and not durable, the process is killed, the next start brings the index up to the segment before it, and then
/// the power goes: the index is complete up to a segment that is the newest one again.
#[test]
fn what_is_written_after_the_newest_segment_was_lost_is_read_by_the_next_start() {
    let bench = Bench::new();
    let mut store = bench.open();
    put(&mut store, "a", "1");
    store.freeze().unwrap();
    let indexed = store.checkpointer.finish().unwrap();
    store.checkpoint_done(indexed).unwrap();
    drop(store);
    let segments = bench.segments();
    assert_eq!(segments.len(), 2);
    fs::remove_file(&segments[1]).unwrap();

    let mut store = bench.open();
    put(&mut store, "b", "2");
    let expected = pairs(&store);
    assert_eq!(expected.len(), 2);
    drop(store);
    assert_eq!(pairs(&bench.open()), expected);
}

#[test]
fn a_failing_index_is_told_by_a_later_commit() {
    #[derive(Clone, Default)]
    struct Broken(MapIndex);
    impl Index for Broken {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
            self.0.get(key)
        }
        fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
            self.0.scan(from, to)
        }
        fn commit(&self, _: &Batch) -> Result<(), Failed> {
            Err(Failed::new("writing the index", "no space left on device"))
        }
        fn bytes(&self) -> u64 {
            0
        }
    }
    let bench = Bench::new();
    let journal = Journal::open(bench.files(), false).unwrap();
    let index = Broken(bench.index.clone());
    let recovered = Journaled::recover(journal, index, bench.heard.clone(), bench.settings, None, false);
    let mut store = recovered.unwrap_or_else(|why| panic!("{why}")).store;
    let commit = |n: u32| {
        let mut batch = Batch::default();
        batch.put(n.to_be_bytes().to_vec(), "x".repeat(100));
        store.commit(&batch)
    };
    let failed = (0..1_000).map(commit).find_map(Result::err).expect("it is told within a few segments' worth");
    assert!(failed.to_string().contains("no space left"), "{failed}");
    drop(store);
    assert!(bench.open().get(&0_u32.to_be_bytes()).unwrap().is_some(), "and nothing is lost");
}

/// An index whose commits wait until the test releases them.
#[derive(Clone, Default)]
struct Slow(MapIndex, Arc<Mutex<()>>);

impl Index for Slow {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Failed> {
        self.0.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<(Bytes, Bytes), Failed>> {
        self.0.scan(from, to)
    }

    fn commit(&self, batch: &Batch) -> Result<(), Failed> {
        drop(self.1.lock().unwrap());
        self.0.commit(batch)
    }

    fn bytes(&self) -> u64 {
        0
    }
}

#[test]
fn an_index_that_stands_still_holds_up_no_commit_and_is_told_as_being_behind() {
    let bench = Bench::new();
    let index = Slow(bench.index.clone(), Arc::default());
    let held = index.1.clone();
    let journal = Journal::open(bench.files(), false).unwrap();
    let recovered = Journaled::recover(journal, index, bench.heard.clone(), bench.settings, None, false);
    let mut store = recovered.unwrap_or_else(|why| panic!("{why}")).store;
    let commit = |store: &mut Journaled<Slow, Heard>, n: u32| {
        let mut batch = Batch::default();
        batch.put(format!("k{n}").into_bytes(), "x".repeat(100));
        store.commit(&batch).unwrap();
    };
    let standing_still = held.lock().unwrap();
    // Far more than may be held before it is behind: this would never end if a commit waited for a checkpoint.
    for n in 0..60 {
        commit(&mut store, n);
    }
    assert!(store.disk().behind);
    assert_eq!(store.keys(b"k", b"l").count(), 60, "all of it is there");
    drop(standing_still);
    while store.disk().behind {
        store.catch_up().unwrap();
        std::thread::yield_now();
    }
    commit(&mut store, 60);
    drop(store);
    assert_eq!(bench.open().keys(b"k", b"l").count(), 61);
}

/// Flips a byte of the first value of a run of `fill`, in the oldest segment.
fn flip(bench: &Bench, fill: u8) {
    let first = &bench.segments()[0];
    let mut bytes = fs::read(first).unwrap();
    let at = bytes.windows(9).position(|window| window == [fill; 9]).unwrap();
    bytes[at] ^= 1;
    fs::write(first, bytes).unwrap();
}

#[test]
fn a_damaged_value_that_nothing_needs_any_more_does_not_stop_reclaiming() {
    let bench = Bench::new();
    let mut store = bench.open();
    let mut first = Batch::default();
    first.put(b"beside".to_vec(), "b".repeat(150));
    first.put(b"over".to_vec(), "o".repeat(150));
    store.commit(&first).unwrap();
    put(&mut store, "over", "written anew");
    for n in 0..20 {
        put(&mut store, &format!("more {n}"), &"z".repeat(200));
    }
    drop(store);
    flip(&bench, b'o');
    let mut store = bench.open();
    let areas = store.damaged_areas();
    assert!(areas.len() == 1 && areas[0].segment == 1, "{areas:?}");
    for n in 0..400 {
        put(&mut store, "count", &format!("{n}{}", "x".repeat(140)));
    }
    while store.tend(u64::MAX).unwrap() {}
    assert!(store.journal.oldest() > 1, "the damaged segment is gone");
    assert!(!bench.heard.damage(), "nothing is lost");
    assert_eq!(
        store.get(b"beside").unwrap(),
        Some(Bytes::from("b".repeat(150))),
        "what stood beside it is carried over"
    );
    assert_eq!(store.get(b"over").unwrap(), Some(Bytes::from_static(b"written anew")));
    assert!(store.damaged_areas().is_empty());
    let expected = pairs(&store);
    drop(store);
    bench.new_index();
    assert_eq!(pairs(&bench.open()), expected, "from the journal alone");
}

#[test]
fn a_damaged_value_that_is_still_needed_is_lost_alone_and_its_segment_is_kept() {
    let bench = Bench::new();
    let mut store = bench.open();
    let mut first = Batch::default();
    first.put(b"beside".to_vec(), "b".repeat(150));
    first.put(b"lost".to_vec(), "l".repeat(150));
    store.commit(&first).unwrap();
    for n in 0..20 {
        put(&mut store, &format!("more {n}"), &"z".repeat(200));
    }
    drop(store);
    flip(&bench, b'l');
    let mut store = bench.open();
    for n in 0..400 {
        put(&mut store, "count", &format!("{n}{}", "x".repeat(140)));
    }
    while store.tend(u64::MAX).unwrap() {}
    assert!(store.journal.oldest() > 1 && bench.heard.damage());
    assert!(store.get(b"lost").is_err_and(|failed| failed.one_value), "whoever asks for it is told");
    assert_eq!(store.value_bytes(b"lost").unwrap(), Some(150));
    assert_eq!(store.get(b"beside").unwrap(), Some(Bytes::from("b".repeat(150))));
    let kept = fs::read_dir(bench.journal()).unwrap().flatten();
    assert_eq!(kept.filter(|entry| entry.file_name().to_string_lossy().ends_with(".damaged")).count(), 1);
    let mut batch = Batch::default();
    batch.remove(b"lost".to_vec());
    store.commit(&batch).unwrap();
    assert_eq!(store.get(b"lost").unwrap(), None, "and it can be removed");
}
