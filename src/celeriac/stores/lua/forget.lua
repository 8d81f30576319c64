-- Delete the records of these ids, which follow the prefix. Gives how many there were.

local count = 0
for index = 2, #ARGV do
  call('DEL', EXPIRED .. ARGV[index])
  if remove(ARGV[index]) then
    count = count + 1
    call('PUBLISH', FORGOTTEN, ARGV[index])
  end
end
return count
