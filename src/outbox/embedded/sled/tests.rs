use super::*;

const CACHE: u64 = 8 << 20;

fn put(index: &SledIndex, key: &[u8], value: &[u8]) -> Result<(), Failed> {
    let mut batch = Batch::default();
    batch.put(key.to_vec(), value.to_vec());
    index.commit(&batch)
}

/// An index with one pair, closed.
fn made(path: &Path) {
    let index = SledIndex::create(path, CACHE).unwrap();
    put(&index, b"a", b"kept").unwrap();
    drop(index);
    wait_until_let_go(path).unwrap();
}

#[test]
fn rule_2_a_value_that_sled_might_put_into_a_blob_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let index = SledIndex::create(&path, CACHE).unwrap();
    put(&index, b"a", &[1; VALUE_BYTES_MAX]).unwrap();
    let refused = put(&index, b"b", &[1; VALUE_BYTES_MAX + 1]).unwrap_err();
    assert!(refused.why.contains("4097"), "{refused}");
    assert_eq!(fs::read_dir(path.join("blobs")).unwrap().count(), 0);
}

#[test]
fn rule_3_a_snapshot_cut_off_while_being_written_does_not_keep_the_index_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    made(&path);
    let unfinished = path.join("snap.FFFFFFFFFFFFFF00.generating");
    fs::write(&unfinished, b"").unwrap();
    assert!(matches!(open_db(&path, CACHE), Err(OpenError::Damaged(_))), "the rule is still needed");
    let index = SledIndex::open(&path, CACHE).unwrap();
    assert_eq!(index.get(b"a").unwrap(), Some(Bytes::from_static(b"kept")));
    assert!(!unfinished.exists());
}

#[test]
fn an_index_that_a_thread_still_holds_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    made(&path);
    let held = File::open(path.join("db")).unwrap();
    held.try_lock().unwrap();
    let (opening, opens) = std::sync::mpsc::channel();
    let opener = thread::spawn(move || {
        opening.send(()).unwrap();
        SledIndex::open(&path, CACHE).map(drop)
    });
    opens.recv().unwrap();
    thread::sleep(3 * UNLOCK_WAIT); // long enough for an open that does not wait to fail
    drop(held);
    opener.join().unwrap().unwrap();
}

#[test]
fn an_index_without_its_data_is_not_taken_for_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    for file in ["db", "conf"] {
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        made(&path);
        fs::remove_file(path.join(file)).unwrap();
        assert!(matches!(SledIndex::open(&path, CACHE), Err(OpenError::Damaged(_))), "without {file}");
    }
}
