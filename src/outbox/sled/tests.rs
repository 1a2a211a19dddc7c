use super::*;

const CACHE: u64 = 8 << 20;

fn put(kv: &mut SledKv, key: &[u8], value: &[u8]) -> Result<(), Failed> {
    let mut batch = Batch::default();
    batch.put(key.to_vec(), value.to_vec());
    kv.commit(&batch)
}

/// One life of a store: opens, does, closes.
fn with<T>(state: &Path, work: impl FnOnce(&mut SledKv) -> T) -> Result<T, OpenError> {
    let mut kv = SledKv::open(state, CACHE)?;
    let done = work(&mut kv);
    drop(kv);
    wait_until_let_go(&state.join(STORE)).unwrap();
    Ok(done)
}

fn remove_snapshots(store: &Path) {
    for entry in fs::read_dir(store).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn rule_2_a_value_that_sled_might_put_into_a_blob_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path(), CACHE).unwrap();
    put(&mut kv, b"pa", &[1; VALUE_BYTES_MAX]).unwrap();
    let refused = put(&mut kv, b"pb", &[1; VALUE_BYTES_MAX + 1]).unwrap_err();
    assert!(refused.why.contains("4097"), "{refused}");
    assert_eq!(fs::read_dir(dir.path().join("sled/blobs")).unwrap().count(), 0);
}

#[test]
fn rule_3_a_snapshot_cut_off_while_being_written_does_not_keep_the_store_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    with(dir.path(), |kv| put(kv, b"pa", b"kept").unwrap()).unwrap();
    let store = dir.path().join(STORE);
    let unfinished = store.join("snap.FFFFFFFFFFFFFF00.generating");
    fs::write(&unfinished, b"").unwrap();
    assert!(matches!(open_unlocked(&store, CACHE), Err(OpenError::Damaged { .. })), "the rule is still needed");
    wait_until_let_go(&store).unwrap();
    let kept = with(dir.path(), |kv| (kv.get(b"pa").unwrap(), kv.salvaged().is_some())).unwrap();
    assert_eq!(kept, (Some(Bytes::from_static(b"kept")), false));
    assert!(!unfinished.exists());
}

#[test]
fn rule_4_a_store_half_made_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let aside = dir.path().join(ASIDE);
    fs::create_dir_all(aside.join("blobs")).unwrap();
    fs::write(aside.join("conf"), b"half").unwrap();
    with(dir.path(), |kv| put(kv, b"pa", b"kept").unwrap()).unwrap();
    assert!(!aside.exists());
}

#[test]
fn a_store_that_a_thread_still_holds_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    with(dir.path(), |kv| put(kv, b"pa", b"kept").unwrap()).unwrap();
    let held = File::open(dir.path().join(STORE).join("db")).unwrap();
    held.try_lock().unwrap();
    let (opening, opens) = std::sync::mpsc::channel();
    let state = dir.path().to_owned();
    let opener = thread::spawn(move || {
        opening.send(()).unwrap();
        SledKv::open(&state, CACHE).map(drop)
    });
    opens.recv().unwrap();
    thread::sleep(3 * UNLOCK_WAIT); // long enough for an open that does not wait to fail
    drop(held);
    opener.join().unwrap().unwrap();
}

#[test]
fn a_store_that_opens_empty_or_older_than_it_was_is_found_out_and_kept() {
    for lost in ["db", "what came later"] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join(STORE);
        with(dir.path(), |kv| put(kv, keys::META_CLOCK, &5_000_u64.to_be_bytes()).unwrap()).unwrap();
        let old = fs::read(store.join("db")).unwrap();
        with(dir.path(), |kv| put(kv, keys::META_CLOCK, &50_000_u64.to_be_bytes()).unwrap()).unwrap();
        remove_snapshots(&store);
        match lost {
            "db" => fs::remove_file(store.join("db")).unwrap(),
            _ => fs::write(store.join("db"), &old).unwrap(),
        }
        let (salvaged, clock) = with(dir.path(), |kv| (kv.salvaged().cloned(), kv.clock().unwrap())).unwrap();
        let salvaged = salvaged.unwrap_or_else(|| panic!("without {lost} it opened in silence"));
        assert_eq!(kept(dir.path()), [salvaged.kept]);
        assert_eq!(clock, Some(UnixMillis(50_000)));
        assert!(with(dir.path(), |kv| kv.salvaged().is_none()).unwrap(), "the new one is sound");
    }
}

#[test]
fn a_store_that_is_gone_is_not_begun_anew_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    with(dir.path(), |kv| put(kv, keys::META_CLOCK, &5_000_u64.to_be_bytes()).unwrap()).unwrap();
    fs::remove_dir_all(dir.path().join(STORE)).unwrap();
    let refused = with(dir.path(), |_| ()).unwrap_err().to_string();
    assert!(refused.contains("witness"), "it says what to do: {refused}");
    fs::remove_file(dir.path().join("witness")).unwrap();
    with(dir.path(), |_| ()).unwrap();
}

#[test]
fn an_interrupted_salvage_is_finished_or_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join(STORE);
    with(dir.path(), |kv| put(kv, b"pa", b"kept").unwrap()).unwrap();
    fs::create_dir(dir.path().join("sled.salvaged")).unwrap();
    fs::create_dir(dir.path().join("sled.copy")).unwrap();
    assert!(with(dir.path(), |kv| kv.get(b"pa").unwrap()).unwrap().is_some());
    assert!(!dir.path().join("sled.salvaged").exists() && !dir.path().join("sled.copy").exists());
    fs::rename(&store, dir.path().join("sled.salvaged")).unwrap();
    assert!(with(dir.path(), |kv| kv.get(b"pa").unwrap()).unwrap().is_some());
}
