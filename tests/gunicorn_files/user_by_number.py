# The same with numbers, as in container images.
#: root
#: get /user

user = 65534
group = 65534
