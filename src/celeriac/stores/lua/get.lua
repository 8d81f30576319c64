-- Records: for each id after the prefix its record and Celery's result, or nothing where there is neither.

local found = {}
for index = 2, #ARGV do
  local row = load(ARGV[index])
  local text = call('GET', META .. ARGV[index])
  found[index - 1] = (row or text) and { row or blank(), text }
end
return found
