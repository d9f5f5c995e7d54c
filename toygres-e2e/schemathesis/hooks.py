"""What schemathesis should know of the API and of HTTP beyond the API's document."""

import re
import uuid

import schemathesis


@schemathesis.hook
def filter_headers(context, headers):
    """Leaves out headers without a value, which are then not sent: what was to be refused is rightly accepted."""
    return all(value is not None for value in (headers or {}).values())


@schemathesis.hook
def before_call(context, case, kwargs):
    """Makes a valid key unique: a key that was used for another request is rightly refused."""
    scenario = getattr(case.meta and case.meta.phase.data, "scenario", None)
    if getattr(scenario, "name", None) == "MISSING_PARAMETER":
        # Once changed, a request without a token would be given one.
        return
    for name, key in dict(case.headers or {}).items():
        if name.lower() == "idempotency-key" and isinstance(key, str) and re.fullmatch("[!-~]{1,200}", key):
            case.headers[name] = f"{key}-{uuid.uuid4()}"
