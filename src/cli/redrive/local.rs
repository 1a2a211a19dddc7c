//! Redrives dead letters from the daemon's own store.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{Options, answer_of};
use crate::admin::api::{Answers, Ids, LetterPage, LettersQuery};
use crate::cli::admin_client::{AdminClient, page_size, with_query};
use crate::cli::dead_letters::{FilterOptions, pages};
use crate::cli::{Exit, Failure, out};
use crate::clock::Clock;
use crate::deadletter::redrive::Acceptance;
use crate::plural::{agree, count};

/// The most ids in one request to the store.
const BATCH: usize = 100;

/// The most dead letters named that stay, each with the reason.
const NAMED_MAX: usize = 20;

/// A redrive from a store.
pub(super) struct Local<'a> {
    pub(super) client: AdminClient,
    pub(super) options: &'a Options,
}

impl Local<'_> {
    pub(super) async fn run(self, clock: &Clock, stop: &CancellationToken) -> Result<(), Failure> {
        let Self { client, options: Options { filter, rate, limit, dry_run, progress, standalone, .. } } = self;
        let (rate, dry_run) = (*rate, *dry_run);
        let limit = limit.unwrap_or(u64::MAX);
        let mut progress = Progress::start(*progress, None, clock);
        let (mut revived, mut stayed, mut seen) = (0_u64, Vec::new(), 0_u64);
        let size = rate.map_or(BATCH, |rate| ((rate / 10.0) as usize).clamp(1, BATCH));
        let query = LettersQuery { limit: page_size(size), ..filter.query() };
        let done = pages(&client, query, async |page| {
            progress.expect((page.buried + seen).min(limit));
            let ids = page.dead_letters.iter().map(|letter| letter.id);
            let ids: Vec<_> = ids.take(usize::try_from(limit - revived).unwrap_or(usize::MAX)).collect();
            if dry_run {
                revived += ids.len() as u64;
            } else if !ids.is_empty() {
                let ids = Ids { ids: ids.clone() };
                let Answers { answers } = client.post("/v1/dead-letters/redrive", &ids).await?;
                for (id, answer) in ids.ids.iter().zip(answers) {
                    match answer_of(answer) {
                        Acceptance::Accepted | Acceptance::Repeat => revived += 1,
                        Acceptance::Busy { why, .. } | Acceptance::Ceiling(why) | Acceptance::Refused(why) => {
                            stayed.push(format!("{id}: {why}"));
                        }
                    }
                }
            }
            seen = revived + stayed.len() as u64;
            progress.at(seen);
            if let Some(rate) = rate {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = clock.sleep(Duration::from_secs_f64(ids.len() as f64 / rate)) => {}
                }
            }
            Ok(revived < limit && !stop.is_cancelled())
        })
        .await;
        progress.finish();
        out::line(said(revived, dry_run, stayed_in(&client, filter).await))?;
        if *standalone && !dry_run && revived > 0 {
            out::line("The next daemon on this outbox delivers them.")?;
        }
        stayed.iter().take(NAMED_MAX).try_for_each(|why| out::line(format!("  {why}")))?;
        if stayed.len() > NAMED_MAX {
            out::line(format!("  and {} more", stayed.len() - NAMED_MAX))?;
        }
        done?;
        if stop.is_cancelled() {
            return Err(Failure::saying(Exit::Failed, "interrupted; the rest is still in the store"));
        }
        if stayed.is_empty() {
            Ok(())
        } else {
            Err(Failure::saying(Exit::Failed, "some dead letters stay in the store"))
        }
    }
}

/// How many dead letters of the given functions are in the store. `None` if that is not known.
async fn stayed_in(client: &AdminClient, filter: &FilterOptions) -> Option<u64> {
    let LettersQuery { function, .. } = filter.query();
    let query = LettersQuery { function, limit: page_size(1), ..LettersQuery::default() };
    let page = client.get::<LetterPage>(&with_query("/v1/dead-letters", &query)).await;
    page.ok().map(|page| page.buried)
}

fn said(revived: u64, dry_run: bool, stay: Option<u64>) -> String {
    let done = match dry_run {
        true => format!("{} would be redriven from the store", count(revived, "dead letter")),
        false => format!("{} redriven from the store", count(revived, "dead letter")),
    };
    let stay = stay.map(|stay| if dry_run { stay.saturating_sub(revived) } else { stay });
    match stay {
        Some(stay) => format!("{done}, {}", agree(stay, "stays there", "stay there")),
        None => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_what_is_still_in_the_store() {
        assert_eq!(said(2, false, Some(4)), "2 dead letters redriven from the store, 4 stay there");
        assert_eq!(said(2, true, Some(6)), "2 dead letters would be redriven from the store, 4 stay there");
        assert_eq!(said(1, false, Some(1)), "1 dead letter redriven from the store, 1 stays there");
        assert_eq!(said(1, false, None), "1 dead letter redriven from the store");
    }
}
