//! Back from the store itself.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{Options, answer_of};
use crate::cli::admin_client::AdminClient;
use crate::cli::dead_letters::{letters, pages};
use crate::cli::{Exit, Failure, print};
use crate::clock::Clock;
use crate::deadletter::redrive::Answer;

/// Ids of one request to the store.
const BATCH: usize = 100;

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
        let done = pages(&client, filter, &[("limit", Some(size.to_string().as_str()))], async |page| {
            progress.expect(page["buried"].as_u64().map_or(0, |buried| (buried + seen).min(limit)));
            let ids = letters(page).iter().map(|letter| letter["id"].clone());
            let ids: Vec<Value> = ids.take(usize::try_from(limit - revived).unwrap_or(usize::MAX)).collect();
            if dry_run {
                revived += ids.len() as u64;
            } else if !ids.is_empty() {
                let answer = client.post("/v1/dead-letters/redrive", &json!({ "ids": ids })).await?;
                for (id, answer) in ids.iter().zip(answer["answers"].as_array().into_iter().flatten()) {
                    match answer_of(answer) {
                        Answer::Accepted | Answer::Repeat => revived += 1,
                        Answer::Busy { why, .. } | Answer::Ceiling(why) | Answer::Refused(why) => {
                            stayed.push(format!("{}: {why}", id.as_str().unwrap_or_default()));
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
        let verb = if dry_run { "would be redriven" } else { "redriven" };
        let mut text = format!("{revived} {verb} from the store, {} stay there\n", stayed.len());
        if *standalone && !dry_run && revived > 0 {
            text += "A daemon delivers them when it next runs on this outbox.\n";
        }
        text.extend(stayed.iter().take(20).map(|why| format!("  {why}\n")));
        print(&text)?;
        done?;
        if stop.is_cancelled() {
            return Err(Failure::saying(Exit::Failed, "interrupted; what is left is still in the store"));
        }
        if stayed.is_empty() {
            Ok(())
        } else {
            Err(Failure::saying(Exit::Failed, "some dead letters stay in the store"))
        }
    }
}
