-- Records: for each id after the prefix its fields and Celery's result, or nothing where there is neither.

local found = {}
for index = 2, #ARGV do
  local row = call('HMGET', TASK .. ARGV[index], unpack(FIELDS))
  local text = call('GET', META .. ARGV[index])
  row[#FIELDS + 1] = text
  found[index - 1] = (row[STATE] or text) and row
end
return found
