"""Speed, measured beside other libraries; installed as hub_unets.benchmarks for `hub-unets bench`."""
