//! The rules for a function's events: where their key is, and how it reaches the function.
//!
//! Both are applied when an event is accepted, not when it is attempted. So sendoff stores what it sends, every attempt
//! is the same even if the configuration changes in between (G4), and an event that grows too large is refused at once.

use std::fmt;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jmespath::ast::Ast;
use jmespath::functions::{ArgumentType, CustomFunction, Signature};
use jmespath::{Context, ErrorReason, JmespathError, Rcvar, Runtime, Variable};
use sha2::{Digest, Sha256};

use crate::event::{Event, FunctionName, IdempotencyKey, KEY_CHARS_MAX, KeySource};
use crate::ingest::exact::{self, Read};
use crate::ingest::refusal::Refusal;

/// The longest `X-Amz-Durable-Execution-Name`, in characters (Lambda's API model).
const DURABLE_NAME_CHARS_MAX: usize = 64;

/// The rules of all functions.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The rule for functions that match no pattern.
    pub default: Rule,
    /// Rules by name pattern (`*` matches any run of characters). The first match in file order counts.
    pub functions: Vec<(String, Rule)>,
}

impl Rules {
    pub fn of(&self, function: &FunctionName) -> &Rule {
        self.functions.iter().find(|(pattern, _)| function.fits(pattern)).map_or(&self.default, |(_, rule)| rule)
    }
}

/// The rule of a function. The default finds no key in the payload and changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// Where the key is in the payload.
    pub key: Option<KeyExpression>,
    /// Each event starts a durable execution with its key as the name, unless the client named it.
    pub durable: bool,
    /// The field of a JSON object payload that receives the key.
    pub inject: Option<String>,
}

impl Rule {
    /// Puts the event's key where the function finds it. `payload_max` is in bytes.
    pub fn carry(&self, event: &mut Event, payload_max: usize) -> Result<(), Refusal> {
        if self.durable && event.carried.durable_execution_name.is_none() {
            event.carried.durable_execution_name = Some(durable_name(&event.function.name, &event.key.value));
        }
        if let Some(field) = &self.inject
            && let Some(payload) = with_field(&event.payload, field, &event.key.value)
        {
            if payload.len() > payload_max {
                let (bytes, limit) = (Some(payload.len() as u64), payload_max as u64);
                return Err(Refusal::PayloadTooLarge { bytes, limit });
            }
            event.payload = payload;
        }
        Ok(())
    }
}

/// The name of a durable execution. A key that matches the pattern of names is used as it is, so that people find it. Any
/// other key is hashed together with the function, because AWS's documentation disagrees on whether names are unique
/// per function or per account.
fn durable_name(function: &FunctionName, key: &str) -> String {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if (1..=DURABLE_NAME_CHARS_MAX).contains(&key.len()) && key.bytes().all(fits) {
        return key.to_owned();
    }
    sha256_hex(format!("{function}\0{key}").as_bytes())
}

/// The payload with the field added in front, all other bytes unchanged. `None` if the payload is not an object or has
/// the field already. An empty payload counts as `{}`, as it does for Lambda.
fn with_field(payload: &Bytes, field: &str, key: &str) -> Option<Bytes> {
    let text = std::str::from_utf8(payload).ok()?.trim_ascii();
    let text = if text.is_empty() { "{}" } else { text };
    let read = exact::read(text)?.value;
    let fields = read.as_object()?;
    if fields.contains_key(field) {
        return None;
    }
    let rest = text.strip_prefix('{')?;
    let comma = if fields.is_empty() { "" } else { "," };
    let entry = format!("{}:{}", serde_json::Value::from(field), serde_json::Value::from(key));
    Some(Bytes::from(format!("{{{entry}{comma}{rest}")))
}

/// A JMESPath expression that finds the key in a payload. Supports `powertools_json` and `powertools_base64`, as
/// Powertools for AWS Lambda does.
#[derive(Clone)]
pub struct KeyExpression {
    text: Arc<str>,
    ast: Arc<jmespath::ast::Ast>,
}

impl KeyExpression {
    /// Compiles an expression. The error says in one line what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let one_line = |error: JmespathError| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        let ast = jmespath::parse(text).map_err(one_line)?;
        Ok(Self { text: text.into(), ast: Arc::new(ast) })
    }

    /// The key in the payload. `None` if the expression finds nothing: null, an empty text, or a list or object of nulls
    /// only, as in Powertools. A text is the key itself. Any other value is a key as its JSON.
    ///
    /// A number beyond 64 bits counts digit by digit, and a text with half a surrogate pair by its digest. Refuses a payload
    /// with such values if the expression compares or computes, because the result might equal another event's key.
    pub fn key(&self, payload: &[u8]) -> Result<Option<IdempotencyKey>, Refusal> {
        let Some(Read { value: data, is_exact }) = std::str::from_utf8(payload).ok().and_then(exact::read) else {
            return Ok(None);
        };
        if !is_exact && computes(&self.ast) {
            return Err(Refusal::content(format!(
                "The payload has a number or text that cannot be represented exactly, and the idempotency key `{}` of \
                this function compares or computes with values of the payload. Send the key in Idempotency-Key, or \
                write such numbers as strings.",
                self.text
            )));
        }
        let mut context = Context::new(&self.text, &RUNTIME);
        let Ok(found) = jmespath::interpret(&Rcvar::new(data), &self.ast, &mut context) else { return Ok(None) };
        let value = match &*found {
            Variable::Null | Variable::Expref(_) => return Ok(None),
            Variable::String(text) => exact::number_in(text).unwrap_or(text).to_owned(),
            Variable::Array(items) if items.iter().all(|item| item.is_null()) => return Ok(None),
            Variable::Object(fields) if fields.values().all(|field| field.is_null()) => return Ok(None),
            Variable::Bool(_) | Variable::Number(_) | Variable::Array(_) | Variable::Object(_) => found.to_string(),
        };
        let value = match value.chars().count() {
            0 => return Ok(None),
            1..=KEY_CHARS_MAX if !exact::stands_in(&value) => value,
            _ => sha256_hex(value.as_bytes()),
        };
        Ok(Some(IdempotencyKey { value, source: KeySource::Expression }))
    }
}

impl fmt::Debug for KeyExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// Whether an expression inspects values instead of only selecting them. Functions that parse or join texts only select.
fn computes(ast: &Ast) -> bool {
    match ast {
        Ast::Comparison { .. } => true,
        Ast::Function { name, args, .. } => {
            !["powertools_json", "powertools_base64", "not_null"].contains(&name.as_str()) || args.iter().any(computes)
        }
        Ast::Identity { .. } | Ast::Field { .. } | Ast::Index { .. } | Ast::Literal { .. } | Ast::Slice { .. } => false,
        Ast::Expref { ast, .. } => computes(ast),
        Ast::Flatten { node, .. } | Ast::Not { node, .. } | Ast::ObjectValues { node, .. } => computes(node),
        Ast::MultiList { elements, .. } => elements.iter().any(computes),
        Ast::MultiHash { elements, .. } => elements.iter().any(|pair| computes(&pair.value)),
        Ast::Condition { predicate: lhs, then: rhs, .. }
        | Ast::Projection { lhs, rhs, .. }
        | Ast::And { lhs, rhs, .. }
        | Ast::Or { lhs, rhs, .. }
        | Ast::Subexpr { lhs, rhs, .. } => computes(lhs) || computes(rhs),
    }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut runtime = Runtime::new();
    runtime.register_builtin_functions();
    let mut text_function = |name: &str, read: fn(&str) -> Result<Variable, String>| {
        let function = move |args: &[Rcvar], context: &mut Context<'_>| {
            let text = args.first().and_then(|arg| arg.as_string()).map_or("", String::as_str);
            read(text).map(Rcvar::new).map_err(|why| JmespathError::from_ctx(context, ErrorReason::Parse(why)))
        };
        let signature = Signature::new(vec![ArgumentType::String], None);
        runtime.register_function(name, Box::new(CustomFunction::new(signature, Box::new(function))));
    };
    text_function("powertools_json", |text| {
        // After a second parse, replacement texts cannot be distinguished from the text's own.
        let read = if exact::stands_in(text) { None } else { exact::read(text) };
        read.map(|read| read.value).ok_or_else(|| "not JSON".to_owned())
    });
    text_function("powertools_base64", |text| {
        let bytes = BASE64_STANDARD.decode(text).map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map(Variable::String).map_err(|error| error.to_string())
    });
    runtime
});

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::event::{Carried, EventId, Function};

    fn key(expression: &str, payload: &str) -> Option<String> {
        KeyExpression::parse(expression).unwrap().key(payload.as_bytes()).unwrap().map(|key| key.value)
    }

    #[test]
    fn an_expression_finds_the_key_as_powertools_writes_it() {
        for (expression, payload, expected) in [
            ("order_id", r#"{"order_id":"o-1"}"#, Some("o-1")),
            ("order_id", r#"{"order_id":17}"#, Some("17")),
            ("order_id", r#"{"order_id":true}"#, Some("true")),
            ("[user.uid, order_id]", r#"{"user":{"uid":"u"},"order_id":"o"}"#, Some(r#"["u","o"]"#)),
            ("{a: x, b: y}", r#"{"y":2,"x":1}"#, Some(r#"{"a":1,"b":2}"#)),
            ("Records[0].messageId", r#"{"Records":[{"messageId":"m"}]}"#, Some("m")),
            ("powertools_json(body).id", r#"{"body":"{\"id\":\"in\"}"}"#, Some("in")),
            ("powertools_base64(data)", r#"{"data":"aGk="}"#, Some("hi")),
            ("powertools_json(body).id", r#"{"body":"not json"}"#, None),
            ("powertools_base64(data)", r#"{"data":7}"#, None),
            ("order_id", r#"{"other":1}"#, None),
            ("order_id", r#"{"order_id":null}"#, None),
            ("order_id", r#"{"order_id":""}"#, None),
            ("[user.uid, order_id]", r#"{"x":1}"#, None),
            ("order_id", "[1]", None),
            ("order_id", "", None),
        ] {
            assert_eq!(key(expression, payload).as_deref(), expected, "{expression} in {payload}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_represented_elsewhere_in_the_payload_hides_no_key() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for (odd, form) in [
            (r#""\ud83d""#, "half a surrogate pair"),
            ("1e400", "a number beyond all"),
            ("1234567890123456789012345", "a long number"),
            (&deep, "deep nesting"),
        ] {
            let payload = format!(r#"{{"odd":{odd},"order_id":"o-1","user":{{"uid":7}}}}"#);
            assert_eq!(key("order_id", &payload).as_deref(), Some("o-1"), "{form}");
            assert_eq!(key("[user.uid, order_id]", &payload).as_deref(), Some(r#"[7,"o-1"]"#), "{form}");
            let body = serde_json::json!({ "body": payload }).to_string();
            assert_eq!(key("powertools_json(body).order_id", &body).as_deref(), Some("o-1"), "{form}");
        }
        assert_eq!(key("order_id", r#"{"order_id":"a","order_id":"b"}"#).as_deref(), Some("b"), "the last counts");
    }

    #[test]
    fn two_ids_that_look_alike_to_the_engine_never_share_a_key() {
        let ids = [
            "9007199254740992",
            "9007199254740993",
            "9007199254740992.0",
            "9007199254740993.0",
            "18446744073709551616",
            "18446744073709551617",
            "1e400",
            "1e401",
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83d\ud83d""#,
            r#""\\ud83d""#,
            r#""\ufffd""#,
        ];
        for expression in ["id", "[id]", "{a: id}", "x[].id | [0]"] {
            let key = |id: &str| key(expression, &format!(r#"{{"id":{id},"x":[{{"id":{id}}}]}}"#)).unwrap();
            let keys: std::collections::BTreeSet<_> = ids.iter().map(|id| key(id)).collect();
            assert_eq!(keys.len(), ids.len(), "{expression}: {keys:?}");
        }
        assert_eq!(
            key("id", r#"{"id":123456789012345678901234567890}"#).as_deref(),
            Some("123456789012345678901234567890")
        );
    }

    #[test]
    fn an_expression_that_computes_refuses_what_it_could_only_round() {
        for expression in ["to_string(id)", "items[?n == `1`].id", "length(id)", "[sum([id])]"] {
            let expression = KeyExpression::parse(expression).unwrap();
            let refusal = expression.key(br#"{"id":1e400,"items":[]}"#).unwrap_err();
            assert!(refusal.message().contains("Idempotency-Key"), "{}", refusal.message());
            assert!(expression.key(br#"{"id":1.5,"items":[]}"#).is_ok());
        }
    }

    #[test]
    fn a_long_key_is_hashed_and_two_never_share_one() {
        let long = |last: char| key("k", &format!(r#"{{"k":"{}{last}"}}"#, "x".repeat(255))).unwrap();
        assert_eq!(long('a').len(), 64);
        assert_ne!(long('a'), long('b'));
    }

    #[test]
    fn an_expression_that_is_none_says_why_in_one_line() {
        let why = KeyExpression::parse("a[").unwrap_err();
        assert!(!why.is_empty() && !why.contains('\n'), "{why}");
    }

    #[test]
    fn a_field_goes_in_front_and_no_other_byte_changes() {
        for (payload, expected) in [
            (r#"{"a": 1.50,  "b":[ 1 ]}"#, Some(r#"{"k":"o\"1","a": 1.50,  "b":[ 1 ]}"#)),
            (" { } ", Some(r#"{"k":"o\"1" }"#)),
            ("{}", Some(r#"{"k":"o\"1"}"#)),
            ("", Some(r#"{"k":"o\"1"}"#)),
            (r#"{"a":{"k":1}}"#, Some(r#"{"k":"o\"1","a":{"k":1}}"#)),
            (r#"{"\ud83d":1}"#, Some(r#"{"k":"o\"1","\ud83d":1}"#)),
            (r#"{"k":"theirs"}"#, None),
            (r#"{"\u006b":1}"#, None),
            ("[1]", None),
            ("\"text\"", None),
            ("null", None),
        ] {
            let changed = with_field(&Bytes::from(payload.to_owned()), "k", "o\"1");
            assert_eq!(changed.as_deref(), expected.map(str::as_bytes), "{payload}");
            if let Some(changed) = changed {
                assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&changed).is_ok());
            }
        }
    }

    #[test]
    fn a_durable_execution_is_named_after_the_key_if_that_fits() {
        let (orders, bills) = (FunctionName::new("orders"), FunctionName::new("bills"));
        assert_eq!(durable_name(&orders, "order-1_A"), "order-1_A");
        assert_eq!(durable_name(&orders, &"k".repeat(64)), "k".repeat(64));
        for key in ["AKID/5f2c", "a b", "", &"k".repeat(65), "ä"] {
            let name = durable_name(&orders, key);
            assert_eq!(name.len(), 64, "{key}");
            assert_eq!(name, durable_name(&orders, key), "the same on every attempt");
            assert_ne!(name, durable_name(&bills, key), "{key}");
        }
    }

    fn event(payload: &'static str) -> Event {
        let name = FunctionName::new("orders");
        Event {
            id: EventId::mint(UnixMillis(1), 0, &name),
            function: Function { name, address: "orders".into(), qualifier: None, region: None },
            key: IdempotencyKey { value: "order-1".into(), source: KeySource::Header },
            carried: Carried::default(),
            payload: Bytes::from_static(payload.as_bytes()),
            accepted_at: UnixMillis(1),
            deliver_at: None,
            expires_at: None,
            redrives: 0,
        }
    }

    #[test]
    fn a_rule_carries_the_key_and_checks_the_size_that_this_makes() {
        let rule = Rule { key: None, durable: true, inject: Some("id".into()) };
        let mut ours = event("{}");
        rule.carry(&mut ours, 16).unwrap();
        assert_eq!(ours.payload, r#"{"id":"order-1"}"#);
        assert_eq!(ours.carried.durable_execution_name.as_deref(), Some("order-1"));
        let refused = rule.carry(&mut event("{}"), 15);
        assert_eq!(refused, Err(Refusal::PayloadTooLarge { bytes: Some(16), limit: 15 }));
        let mut theirs = event("{}");
        theirs.carried.durable_execution_name = Some("theirs".into());
        rule.carry(&mut theirs, 16).unwrap();
        assert_eq!(theirs.carried.durable_execution_name.as_deref(), Some("theirs"));
    }
}
