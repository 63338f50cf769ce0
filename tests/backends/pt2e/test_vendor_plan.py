from __future__ import annotations

import json

from lq.backends.pt2e.vendor_plan import VendorPlan, VendorTensor
from lq.specs import ActivationSpec, WeightSpec


def test_it_survives_json():
    tensors = (
        VendorTensor("x", None, ActivationSpec(-128, 127), 0),
        VendorTensor("conv", ("add", "relu"), ActivationSpec(0, 127), 1),
    )
    plan = VendorPlan({"fc": WeightSpec(-7, 7, per_channel=False)}, tensors, ("a remark",))
    assert VendorPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
