//! Shortages of file descriptors, which pass.

use super::*;
use crate::outbox::embedded::journal::seal::Salt;

/// A directory in which no file can be made or opened for lack of descriptors, while that is set.
struct Starved(Directory, Arc<AtomicBool>);

impl Files for Starved {
    type File = fs::File;

    fn list(&self) -> io::Result<BTreeMap<u32, u64>> {
        self.0.list()
    }

    fn create(&self, segment: u32) -> io::Result<fs::File> {
        let starved = self.1.load(Ordering::Relaxed);
        if starved { Err(rustix::io::Errno::MFILE.into()) } else { self.0.create(segment) }
    }

    fn open(&self, segment: u32) -> io::Result<fs::File> {
        let starved = self.1.load(Ordering::Relaxed);
        if starved { Err(rustix::io::Errno::MFILE.into()) } else { self.0.open(segment) }
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.0.remove(segment)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn salt(&self) -> io::Result<Option<Vec<u8>>> {
        self.0.salt()
    }

    fn keep_salt(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.keep_salt(bytes)
    }

    fn random(&self) -> io::Result<Salt> {
        self.0.random()
    }
}

#[test]
fn without_descriptors_the_journal_goes_on_in_the_segment_that_there_is() {
    let bench = Bench::new();
    let starved = Arc::new(AtomicBool::new(false));
    let journal = Journal::open(Starved(bench.files(), starved.clone()), false).unwrap();
    let (index, heard) = (bench.index.clone(), bench.heard.clone());
    let recovered = Journaled::recover(journal, index, heard, bench.settings, bench.heard.seen(), false);
    let Ok(Recovered { mut store, .. }) = recovered else { panic!("a new store opens") };
    let mut put = |key: String| {
        let mut batch = Batch::default();
        batch.put(key.into_bytes(), "x".repeat(200));
        store.commit(&batch).unwrap();
    };
    put("before".to_owned());
    starved.store(true, Ordering::Relaxed);
    let segments = bench.segments().len();
    (0..20).for_each(|n| put(format!("starved-{n}")));
    assert_eq!(bench.segments().len(), segments, "far more than a segment is written, and no other is begun");
    starved.store(false, Ordering::Relaxed);
    put("after".to_owned());
    assert!(bench.segments().len() > segments);
    drop(store);
    assert_eq!(pairs(&bench.open()).len(), 22);
}

#[test]
fn without_descriptors_an_old_value_is_not_taken_for_damaged_and_reclaiming_waits() {
    let bench = Bench::new();
    let starved = Arc::new(AtomicBool::new(false));
    let journal = Journal::open(Starved(bench.files(), starved.clone()), false).unwrap();
    let (index, heard) = (bench.index.clone(), bench.heard.clone());
    let recovered = Journaled::recover(journal, index, heard, bench.settings, bench.heard.seen(), false);
    let Ok(Recovered { mut store, .. }) = recovered else { panic!("a new store opens") };
    let put = |store: &mut Journaled<_, _, _>, key: &str| {
        let mut batch = Batch::default();
        batch.put(key.as_bytes().to_vec(), "x".repeat(200));
        store.commit(&batch)
    };
    put(&mut store, "old").unwrap();
    // Before any old segment was opened for reading.
    while store.journal.newest() < 3 {
        put(&mut store, "more").unwrap();
    }
    starved.store(true, Ordering::Relaxed);
    let failed = store.get(b"old").unwrap_err();
    assert!(failed.passes && failed.one_value && !bench.heard.damage(), "{failed}");
    (0..100).for_each(|_| put(&mut store, "more").unwrap());
    starved.store(false, Ordering::Relaxed);
    assert!(store.get(b"old").unwrap().is_some());
    let oldest = store.journal.oldest();
    while store.journal.oldest() == oldest {
        put(&mut store, "more").unwrap();
    }
    assert!(store.get(b"old").unwrap().is_some() && !bench.heard.damage());
}
