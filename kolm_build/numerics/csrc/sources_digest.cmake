# Writes OUTPUT, a header with the digest of the sources in DIRECTORY: SHA-256 of the lines
# "<sha256>  <name>\n" of its *.cpp and *.h, sorted by name. portable.py computes it the same way.
file(GLOB files RELATIVE ${DIRECTORY} ${DIRECTORY}/*.cpp ${DIRECTORY}/*.h)
list(SORT files)
set(lines "")
foreach(name ${files})
  file(SHA256 ${DIRECTORY}/${name} digest)
  string(APPEND lines "${digest}  ${name}\n")
endforeach()
string(SHA256 digest "${lines}")
file(WRITE ${OUTPUT} "#pragma once\n#define KOLM_SOURCES \"${digest}\"\n")
