//! Functions and queues by name, and their ARNs for policies. Pure.

use crate::event::name::is_account_id;

/// The wildcard for unknown parts of an ARN.
const ANY_ACCOUNT: &str = "ACCOUNT";
const ANY_REGION: &str = "REGION";

/// A function to ask about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `None` means the daemon's own.
    pub region: Option<String>,
    /// In a form that Lambda accepts: a name, `name:qualifier`, a partial or a full ARN.
    pub address: String,
}

impl Target {
    /// From a name that Lambda accepts, or a canonical one: `[region/][account/]name[:qualifier]`.
    pub fn of(text: &str) -> Self {
        if text.starts_with("arn:") {
            let region = text.split(':').nth(3).filter(|region| !region.is_empty());
            return Self { region: region.map(str::to_owned), address: text.to_owned() };
        }
        let mut parts = text.rsplit('/');
        let name = parts.next().unwrap_or_default();
        let (mut account, mut region) = (None, None);
        for part in parts {
            let part_of = if part.bytes().all(|byte| byte.is_ascii_digit()) { &mut account } else { &mut region };
            *part_of = Some(part.to_owned());
        }
        let address = account.map_or_else(|| name.to_owned(), |account| format!("{account}:function:{name}"));
        Self { region, address }
    }

    /// The ARN for a policy, with wildcards for unknown parts.
    pub fn arn(&self, region: Option<&str>, account_id: Option<&str>) -> String {
        if self.address.starts_with("arn:") {
            return self.address.clone();
        }
        let (account, name) = match self.address.split_once(":function:") {
            Some((account, name)) => (account, name),
            None => (account_id.unwrap_or(ANY_ACCOUNT), self.address.as_str()),
        };
        format!("arn:aws:lambda:{}:{account}:function:{name}", region.unwrap_or(ANY_REGION))
    }
}

/// A queue to ask about, by URL or ARN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    arn: String,
}

impl Queue {
    /// `region` applies if the URL does not contain one.
    pub fn of(queue: &str, region: Option<&str>) -> Self {
        if queue.starts_with("arn:") {
            return Self { arn: queue.to_owned() };
        }
        let mut path = queue.trim_end_matches('/').rsplit('/');
        let (name, account) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
        let account = if is_account_id(account) { account } else { ANY_ACCOUNT };
        let of_host = queue.split_once("://sqs.").and_then(|(_, host)| host.split_once('.')).map(|(region, _)| region);
        let region = of_host.filter(|region| region.contains('-')).or(region).unwrap_or(ANY_REGION);
        Self { arn: format!("arn:aws:sqs:{region}:{account}:{name}") }
    }

    pub fn arn(self) -> String {
        self.arn
    }
}
