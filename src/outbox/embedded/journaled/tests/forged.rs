//! Payloads that contain the bytes of a frame, beside damage.

use super::*;

/// The formats of segments: the one without a salt, and ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Plain,
    Salted,
}

/// A frame that sets one key.
fn frame(commit: u64, key: &str, value: &[u8], seal: &Seal) -> Vec<u8> {
    let mut frame = FrameWriter::default();
    frame.begin();
    frame.op(key.as_bytes(), Some(value));
    frame.finish(commit, seal).to_vec()
}

/// A payload with frames that set "forged": of a client who knows no salt, one who knows another, and one who has guessed the mark.
fn payload(commit: u64, own: &Seal) -> Vec<u8> {
    let forged = |seal| frame(commit, "forged", b"1", &seal);
    let other = forged(Seal::of(Some(*b"another ")));
    let mut marked = other.clone();
    marked[..4].copy_from_slice(&forged(*own)[..4]);
    [b"before ".to_vec(), forged(Seal::PLAIN), other, marked, b" after".to_vec()].concat()
}

/// A bench with the keys "a" and "payload", and "z" if it goes on; in one segment, of which the index has heard nothing.
fn bench(format: Format, goes_on: bool) -> Bench {
    let bench = Bench::new();
    let segment = &bench.segments()[0];
    let mut bytes = fs::read(segment).unwrap();
    if format == Format::Plain {
        bytes = SegmentHead { number: 1, first_commit: 1, salt: None }.encode();
        fs::remove_file(bench.journal().join("salt")).unwrap();
    }
    let seal = seal_of(&bytes);
    bytes.extend(frame(1, "a", b"1", &seal));
    bytes.extend(frame(2, "payload", &payload(2, &seal), &seal));
    if goes_on {
        bytes.extend(frame(3, "z", b"1", &seal));
    }
    fs::write(segment, bytes).unwrap();
    *bench.heard.0.0.lock().unwrap() = Some(if goes_on { 3 } else { 2 });
    bench
}

/// Where the frame of "payload" begins, and where it ends.
fn place(bytes: &[u8]) -> (usize, usize) {
    let key = bytes.windows(7).position(|window| window == b"payload").unwrap();
    let begins = key - 9 - FRAME_HEAD_BYTES;
    let body = u32::from_le_bytes(bytes[begins + 4..begins + 8].try_into().unwrap());
    (begins, begins + FRAME_HEAD_BYTES + body as usize)
}

#[test]
fn a_frame_within_a_payload_is_not_read_when_the_frame_around_it_is_damaged() {
    for format in [Format::Plain, Format::Salted] {
        let bench = bench(format, true);
        let segment = &bench.segments()[0];
        let mut bytes = fs::read(segment).unwrap();
        let (begins, ends) = place(&bytes);
        bytes[begins] ^= 1;
        fs::write(segment, bytes).unwrap();

        assert!(matches!(bench.try_open(false), Err(Stale::Journal(_))), "{format:?}");
        // As salvage and `sendoff fsck` read it.
        let Recovered { store, gaps } = bench.try_open(true).unwrap_or_else(|why| panic!("{why}"));
        assert!(gaps > 0 && store.get(b"a").unwrap().is_some() && store.get(b"z").unwrap().is_some());
        assert_eq!(store.get(b"payload").unwrap(), None);
        let areas = store.damaged_areas();
        let area = &areas[0];
        // What the format was before shows that the client's frame is a good one.
        let is_forged = format == Format::Plain;
        assert_eq!(store.get(b"forged").unwrap().is_some(), is_forged, "{format:?}");
        assert_eq!(area.to == ends as u64, !is_forged, "{areas:?}");
    }
}

#[test]
fn a_frame_within_a_payload_that_a_crash_cut_off_is_not_read() {
    for format in [Format::Plain, Format::Salted] {
        let bench = bench(format, false);
        let segment = &bench.segments()[0];
        let (_, ends) = place(&fs::read(segment).unwrap());
        File::options().write(true).open(segment).unwrap().set_len(ends as u64 - 1).unwrap();
        *bench.heard.0.0.lock().unwrap() = Some(1);
        match (format, bench.try_open(false)) {
            (Format::Plain, Err(Stale::Journal(_))) => {}
            (Format::Salted, Ok(Recovered { store, .. })) => {
                assert_eq!((store.get(b"forged").unwrap(), store.get(b"payload").unwrap()), (None, None));
                assert!(store.get(b"a").unwrap().is_some());
            }
            (_, Ok(_)) => panic!("{format:?}: it opens"),
            (_, Err(why)) => panic!("{format:?}: {why}"),
        }
    }
}

#[test]
fn reclaiming_carries_nothing_over_that_a_payload_forged() {
    let bench = bench(Format::Salted, true);
    let segment = &bench.segments()[0];
    let mut store = bench.open();
    let mut bytes = fs::read(segment).unwrap();
    let (begins, _) = place(&bytes);
    bytes[begins] ^= 1;
    fs::write(segment, bytes).unwrap();
    for n in 0..500 {
        put(&mut store, &format!("new {}", n % 4), &"x".repeat(150));
    }
    assert!(bench.segments()[0] != *segment, "it was reclaimed");
    assert_eq!(store.get(b"forged").unwrap(), None);
    assert!(store.get(b"z").unwrap().is_some() && store.get(b"payload").unwrap().is_some());
}

#[test]
fn a_segment_whose_head_is_damaged_is_read_by_the_salt_that_is_kept_elsewhere() {
    for (salt, single, is_read) in
        [("kept", true, true), ("gone", false, true), ("damaged", false, true), ("damaged", true, false)]
    {
        let bench = Bench::new();
        let mut store = bench.open();
        let count = if single { 3 } else { 60 };
        for n in 0..count {
            put(&mut store, &format!("{n:03}"), &"x".repeat(100));
        }
        drop(store);
        bench.new_index();
        let (segments, file) = (bench.segments(), bench.journal().join("salt"));
        assert_eq!(segments.len() == 1, single);
        let head = File::options().write(true).open(&segments[segments.len() / 2]).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&head, &[0; 60], 0).unwrap();
        match salt {
            "gone" => fs::remove_file(&file).unwrap(),
            "damaged" => fs::write(&file, b"no salt").unwrap(),
            _ => {}
        }
        let Recovered { store, gaps } = bench.try_open(true).unwrap_or_else(|why| panic!("{salt}: {why}"));
        let left = pairs(&store).len();
        // The first frame stood beside the head.
        let expected = if is_read { count - 1 } else { 0 };
        assert_eq!((left, gaps > 0), (expected, true), "{salt}, single: {single}");
    }
}

#[test]
fn a_salt_that_is_gone_is_put_back_and_segments_of_both_formats_stand_side_by_side() {
    let bench = bench(Format::Plain, true);
    let (salt, segment) = (bench.journal().join("salt"), bench.segments()[0].clone());
    assert!(!salt.exists());
    let mut store = bench.open();
    for n in 0..20 {
        put(&mut store, &format!("new {n}"), &"x".repeat(100));
    }
    let before = pairs(&store);
    assert_eq!(before.len(), 23);
    drop(store);
    let kept = fs::read(&salt).unwrap();
    assert!(segment.exists() && bench.segments().len() > 2);
    fs::remove_file(&salt).unwrap();
    bench.new_index();
    assert_eq!(pairs(&bench.open()), before);
    assert_eq!(fs::read(&salt).unwrap(), kept, "and with it the number of the first segment that has it");
}
