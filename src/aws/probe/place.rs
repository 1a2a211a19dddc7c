//! Functions and queues by name, and the ARNs that a policy names them by. Pure.

/// What stands in an ARN for what nobody has told.
const ANY_ACCOUNT: &str = "ACCOUNT";
const ANY_REGION: &str = "REGION";

/// A function to ask after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// None is the daemon's own.
    pub region: Option<String>,
    /// As Lambda takes it: a name, `name:qualifier`, a partial or a whole ARN.
    pub address: String,
}

impl Target {
    /// Of a name as Lambda takes it, or of a canonical one: `[region/][account/]name[:qualifier]`.
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

    /// What a policy names it by, as far as it is known.
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

/// A queue to ask after, by its URL or ARN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    arn: String,
}

impl Queue {
    /// `region` is where a URL does not say one.
    pub fn of(queue: &str, region: Option<&str>) -> Self {
        if queue.starts_with("arn:") {
            return Self { arn: queue.to_owned() };
        }
        let mut path = queue.trim_end_matches('/').rsplit('/');
        let (name, account) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let account = if is_account { account } else { ANY_ACCOUNT };
        let of_host = queue.split_once("://sqs.").and_then(|(_, host)| host.split_once('.')).map(|(region, _)| region);
        let region = of_host.filter(|region| region.contains('-')).or(region).unwrap_or(ANY_REGION);
        Self { arn: format!("arn:aws:sqs:{region}:{account}:{name}") }
    }

    pub fn arn(self) -> String {
        self.arn
    }
}
