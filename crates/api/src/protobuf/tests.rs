//! Bodies that kubectl 1.36 sends, against the JSON that it prints of the same objects; and bodies made by hand.

use super::*;
use serde_json::json;

/// What becomes of nulls in any case.
fn without_nulls(mut value: Value) -> Value {
    let (version, kind) = (walk::text(&value, "apiVersion"), walk::text(&value, "kind"));
    let of = schema::of(version, kind).unwrap();
    go::drop_nulls(&mut value, &Shape::Object(of));
    value
}

#[test]
fn what_kubectl_sends_is_what_it_prints() {
    let lines: Vec<&str> = include_str!("kubectl.txt").lines().collect();
    assert!(lines.len() == 3 * 13);
    for rows in lines.chunks(3) {
        let [command, body, json] = rows else { panic!("three lines each") };
        let body = BASE64.decode(body).unwrap();
        let expected: Value = serde_json::from_str(json).unwrap();
        let read = decode(&body, ("", "")).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(without_nulls(read), without_nulls(expected), "{command}");
    }
}

/// A field of bytes.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
    out.extend(content);
    out
}

fn body(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let types = [bytes(1, version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &types), bytes(2, raw)].concat()
}

#[test]
fn what_is_no_protobuf_is_refused() {
    assert_eq!(decode(b"{}", ("v1", "Pod")), Err(Error::Prefix));
    let cut = decode(b"k8s\0\x12\x05\x0a", ("v1", "Pod"));
    assert!(matches!(cut, Err(Error::Malformed(_))), "{cut:?}");
    let cut = decode(&body("v1", "Pod", &[0x0a, 0x7f]), ("", ""));
    assert_eq!(cut.unwrap_err().to_string(), "the protobuf message is malformed at core/v1.Pod");
    let unknown = decode(&body("x/v1", "Y", &[]), ("", "")).unwrap_err().to_string();
    assert_eq!(unknown, "no kind \"Y\" is registered for version \"x/v1\"");
}

#[test]
fn what_does_not_say_its_kind_is_of_the_expected_kind() {
    let read = decode(&body("", "", &[]), ("v1", "DeleteOptions")).unwrap();
    assert_eq!(read, json!({"apiVersion": "v1", "kind": "DeleteOptions"}));
}

#[test]
fn zero_is_not_absent_where_go_has_a_pointer() {
    // metadata, and spec { replicas: 0, selector: absent, minReadySeconds: 0 }
    let raw = [bytes(1, &[]), bytes(2, &[0x08, 0, 0x28, 0])].concat();
    let read = decode(&body("apps/v1", "Deployment", &raw), ("", "")).unwrap();
    assert_eq!(read["spec"]["replicas"], 0);
    assert_eq!(read["spec"].get("minReadySeconds"), None);
    assert_eq!(read["spec"]["template"]["spec"]["containers"], Value::Null);
}

#[test]
fn values_with_a_form_of_their_own_are_read() {
    // A Lease: spec { leaseDurationSeconds: -1, acquireTime: { 1, 5000 } }
    let minus_one = [0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let spec = [minus_one.to_vec(), bytes(3, &[0x08, 1, 0x10, 0x88, 0x27])].concat();
    let raw = [bytes(1, &[]), bytes(2, &spec)].concat();
    let read = decode(&body("coordination.k8s.io/v1", "Lease", &raw), ("", "")).unwrap();
    assert_eq!(
        read["spec"],
        json!({"leaseDurationSeconds": -1, "acquireTime": "1970-01-01T00:00:01.000005Z"})
    );
    // A ControllerRevision: data { raw }, revision: 2
    let raw = [bytes(1, &[]), bytes(2, &bytes(1, b"{\"a\":1}")), vec![0x18, 2]].concat();
    let read = decode(&body("apps/v1", "ControllerRevision", &raw), ("", "")).unwrap();
    assert_eq!(read["data"], json!({"a": 1}));
    // A Secret: data { "k": 0xff }, type: "" is left out.
    let raw =
        [bytes(1, &[]), bytes(2, &[bytes(1, b"k"), bytes(2, &[0xff])].concat()), bytes(3, b"")].concat();
    let read = decode(&body("v1", "Secret", &raw), ("", "")).unwrap();
    assert_eq!(read["data"], json!({"k": "/w=="}));
    assert_eq!(read.get("type"), None);
}
