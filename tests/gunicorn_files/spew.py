# Every line is traced, for a fault that cannot be found otherwise.
#: get /
#: out ^shop:\d+:.*return "hello

spew = True
