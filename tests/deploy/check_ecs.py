"""Checks the files of deploy/ecs against what AWS publishes: botocore's model of ECS (`model`, with the packages of the
integration tests) and CloudFormation's schemas (`cfn`, with cfn-lint). Then plants faults and fails if one is not found.

botocore itself checks names and types only. So this also checks enums, and the ranges that the model's documentation
states in words: a range whose words are not found there any more is a failure, too."""

import copy
import json
import re
import sys
from pathlib import Path

ECS = Path(__file__).parents[2] / "deploy" / "ecs"
FILES = {"task-definition.json": "RegisterTaskDefinition", "service.json": "CreateService"}

# The shape and its member, and the words of its documentation that give the least and the most.
RANGES = {
    ("ContainerDefinition", "startTimeout"): r"valid values for Fargate are (\d+)-(\d+) seconds",
    ("ContainerDefinition", "stopTimeout"): r"valid values for Fargate are (\d+)-(\d+) seconds",
    ("HealthCheck", "interval"): r"between (\d+) and (\d+) seconds",
    ("HealthCheck", "timeout"): r"between (\d+) and (\d+) seconds",
    ("HealthCheck", "retries"): r"between (\d+) and (\d+) retries",
    ("HealthCheck", "startPeriod"): r"between (\d+) and (\d+) seconds",
    ("ContainerRestartPolicy", "restartAttemptPeriod"): r"minimum .* of (\d+) seconds and a maximum .* of (\d+) seconds",
    ("EphemeralStorage", "sizeInGiB"): r"minimum supported value is (\d+) GiB and the maximum supported value is (\d+)",
}

# Each file with one fault, and the words that must name it: (file, path, value, words). None removes the member.
SENDOFF, APPLICATION = ("containerDefinitions", 0), ("containerDefinitions", 1)
MODEL_FAULTS = [
    ("task-definition.json", (*SENDOFF, "stopTimeout"), 121, "stopTimeout: 121 is not between 2 and 120"),
    ("task-definition.json", (*SENDOFF, "startTimeout"), 1, "startTimeout: 1 is not between 2 and 120"),
    ("task-definition.json", (*SENDOFF, "healthCheck", "interval"), 4, "interval: 4 is not between 5 and 300"),
    ("task-definition.json", (*SENDOFF, "healthCheck", "timeout"), 61, "timeout: 61 is not between 2 and 60"),
    ("task-definition.json", (*SENDOFF, "healthCheck", "retries"), 11, "retries: 11 is not between 1 and 10"),
    ("task-definition.json", (*SENDOFF, "healthCheck", "startPeriod"), 301, "startPeriod: 301 is not between 0 and 300"),
    ("task-definition.json", (*SENDOFF, "restartPolicy", "restartAttemptPeriod"), 59, "59 is not between 60 and 1800"),
    ("task-definition.json", (*SENDOFF, "restartPolicy", "enabled"), None, 'restartPolicy: "enabled"'),
    ("task-definition.json", (*SENDOFF, "stopTimeOut"), 80, '"stopTimeOut", must be one of'),
    ("task-definition.json", (*APPLICATION, "dependsOn", 0, "condition"), "HEALTHYY", "'HEALTHYY' is not one of"),
    ("task-definition.json", (*APPLICATION, "memory"), "1280", "Invalid type"),
    ("task-definition.json", ("networkMode",), "vpc", "'vpc' is not one of"),
    ("task-definition.json", ("requiresCompatibilities", 0), "FARGAT", "'FARGAT' is not one of"),
    ("task-definition.json", ("ephemeralStorage", "sizeInGiB"), 20, "sizeInGiB: 20 is not between 21 and 200"),
    ("task-definition.json", ("family",), None, 'in input: "family"'),
    ("service.json", ("launchType",), "SPOT", "'SPOT' is not one of"),
    ("service.json", ("propagateTags",), "TASK", "'TASK' is not one of"),
    ("service.json", ("networkConfiguration", "awsvpcConfiguration", "subnets"), None, 'awsvpcConfiguration: "subnets"'),
]
CFN_FAULTS = [
    ("task-definition.json", ("memory",), "600", "not compatible with memory"),
    ("task-definition.json", ("executionRoleArn",), "orders-execution", "AWS::IAM::Role.Arn"),
    ("task-definition.json", (*SENDOFF, "logConfiguration", "logDriver"), "journald", "not one of"),
    ("task-definition.json", (*SENDOFF, "mountPoint"), [], "Additional properties are not allowed"),
    ("service.json", ("deploymentConfiguration", "deploymentCircuitBreaker", "rollback"), None, "required property"),
    ("service.json", ("networkConfiguration", "awsvpcConfiguration", "assignPublicIp"), "NO", "not one of"),
]


def model_problems(name, document):
    """What botocore's model has against the document."""
    import botocore.session
    import botocore.validate

    shape = model.operation_model(FILES[name]).input_shape
    found = botocore.validate.ParamValidator().validate(document, shape).generate_report().splitlines()
    walk(document, shape, None, name, found)
    return found


def walk(value, shape, key, where, found):
    if shape.type_name == "structure" and isinstance(value, dict):
        for member, inner in value.items():
            if member in shape.members:
                walk(inner, shape.members[member], (shape.name, member), f"{where}.{member}", found)
    elif shape.type_name == "list" and isinstance(value, list):
        for n, inner in enumerate(value):
            walk(inner, shape.member, None, f"{where}[{n}]", found)
    elif shape.type_name == "map" and isinstance(value, dict):
        for name, inner in value.items():
            walk(inner, shape.value, None, f"{where}.{name}", found)
    elif shape.type_name == "string" and shape.enum and value not in shape.enum:
        found.append(f"{where}: {value!r} is not one of {', '.join(shape.enum)}")
    elif key in ranges and isinstance(value, int) and not ranges[key][0] <= value <= ranges[key][1]:
        found.append(f"{where}: {value} is not between {ranges[key][0]} and {ranges[key][1]}")


def read_ranges():
    read = {}
    for (shape, member), words in RANGES.items():
        text = re.sub(r"<[^>]+>|\s+", " ", model.shape_for(shape).members[member].documentation)
        match = re.search(words, re.sub(r" +", " ", text))
        assert match, f"the documentation of {shape}.{member} does not say {words!r} any more"
        read[shape, member] = tuple(map(int, match.groups()))
    return read


def cfn_problems(name, document):
    """What cfn-lint has against the document as a resource of a template. `tags` and the like differ between the two
    APIs; the files use nothing of that kind."""
    from cfnlint.api import lint_all

    kind = {"task-definition.json": "TaskDefinition", "service.json": "Service"}[name]
    template = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Resources": {"It": {"Type": f"AWS::ECS::{kind}", "Properties": pascal(document)}},
    }
    # Rules of the kind I are advice on how to write templates.
    return [f"{match.rule.id} {match.message}" for match in lint_all(json.dumps(template)) if match.rule.id[0] != "I"]


# Their keys are names of the log driver and of the environment, not members.
OPAQUE = {"options"}


def pascal(value):
    """The same in CloudFormation's spelling."""
    if isinstance(value, dict):
        return {key[0].upper() + key[1:]: inner if key in OPAQUE else pascal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [pascal(inner) for inner in value]
    return value


def with_fault(document, path, value):
    changed = copy.deepcopy(document)
    parent = changed
    for step in path[:-1]:
        parent = parent[step]
    if value is None:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return changed


if __name__ == "__main__":
    if sys.argv[1] == "model":
        import botocore.session

        model = botocore.session.get_session().get_service_model("ecs")
        ranges = read_ranges()
        problems, faults = model_problems, MODEL_FAULTS
    else:
        problems, faults = cfn_problems, CFN_FAULTS
    documents = {name: json.loads((ECS / name).read_text()) for name in FILES}
    failures = [f"{name}: {problem}" for name, document in documents.items() for problem in problems(name, document)]
    for name, document in documents.items():
        # All faults of a file at once: a run of cfn-lint takes a second.
        planted = [fault[1:] for fault in faults if fault[0] == name]
        for path, value, _ in planted:
            document = with_fault(document, path, value)
        found = problems(name, document)
        for path, value, words in planted:
            if not any(words in problem for problem in found):
                failures.append(f"not noticed in {name}: {path} = {value!r}; found only {found}")
    print("\n".join(failures) or f"{len(documents)} files are in order, {len(faults)} planted faults were found")
    sys.exit(bool(failures))
