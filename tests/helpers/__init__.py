# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What the tests share: tiny models and data, a Hub of their own, runs that are killed, scripts for several processes."""
