//! Reads the current value of every key in order, from the overlays and the index.

use std::iter::Peekable;

use bytes::Bytes;

use super::overlay::{Key, Overlay, Slot};
use crate::outbox::embedded::journal::Location;
use crate::outbox::embedded::kv::Failed;

/// Where the current value of a key was found.
pub enum Newest {
    /// See [`Slot::found`].
    Noted(Location, Option<Bytes>),
    /// An encoded entry of the index.
    Indexed(Bytes),
}

/// The keys of a range that have a value, with its location, in order.
pub fn merge<'a, I: Iterator<Item = Result<(Bytes, Bytes), Failed>>>(
    overlays: [Option<&'a Overlay>; 2],
    from: &[u8],
    to: &[u8],
    index: I,
) -> impl Iterator<Item = Result<(Bytes, Newest), Failed>> + use<'a, I> {
    let mut noted = overlays.map(|overlay| overlay.map(|overlay| overlay.range(from, to).peekable()));
    let mut index = index.peekable();
    std::iter::from_fn(move || {
        loop {
            let in_index = match index.peek() {
                Some(Ok((key, _))) => Some(Key::from_slice(key)),
                Some(Err(_)) => return index.next().map(|pair| pair.map(|(key, entry)| (key, Newest::Indexed(entry)))),
                None => None,
            };
            let peeked = noted.each_mut().map(peek);
            let key = peeked.into_iter().flatten().chain(in_index).min()?;
            let mut newest: Option<Option<Newest>> = None;
            for noted in noted.iter_mut().flatten() {
                if let Some((_, slot)) = noted.next_if(|(at, _)| **at == key) {
                    newest.get_or_insert_with(|| slot.found().map(|(at, held)| Newest::Noted(at, held)));
                }
            }
            let entry = index.next_if(|pair| matches!(pair, Ok((at, _)) if at[..] == key[..]));
            if let Some(Ok((_, entry))) = entry {
                newest.get_or_insert(Some(Newest::Indexed(entry)));
            }
            if let Some(Some(newest)) = newest {
                return Some(Ok((Bytes::copy_from_slice(&key), newest)));
            }
        }
    })
}

fn peek<'a, I: Iterator<Item = (&'a Key, &'a Slot)>>(noted: &mut Option<Peekable<I>>) -> Option<Key> {
    noted.as_mut()?.peek().map(|(key, _)| (*key).clone())
}
